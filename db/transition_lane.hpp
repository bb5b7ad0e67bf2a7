// The threads that write acquires and releases: one function call a batch.
#pragma once

#include "db/answers.hpp"
#include "db/connection.hpp"
#include "db/line_limit.hpp"
#include "db/transition_queue.hpp"

#include <string>
#include <thread>

namespace presenced::db {

// Sends batches over one connection and sorts what comes back. One thread's.
class transition_batch {
public:
    transition_batch(connection& link, transition_queue& queue, observer& watcher,
                     std::string const& node, std::chrono::milliseconds call_timeout);

    // What is left of a batch once the answered ones are answered.
    struct leftover {
        operations busy;     // agents or rows that somebody else holds
        operations again;    // to be sent again
        operations poisoned; // what the database refuses, each for a reason of its own
        operations overran;  // of calls that took too long and were cancelled
        bool locked = false; // `again` for a lock timeout
        bool slow = false;   // `again` for any other failure of a whole call
    };
    // Does not throw call_failure; the connection may be gone afterwards.
    leftover run(operations batch, bool waits);
    // Tells the owners of acquires that were taken back before they could be sent.
    void drop(operations const& dropped);

private:
    void send(operations batch, bool waits, leftover& left);
    void send_parts(operations batch, bool waits, leftover& left);
    void sort(operations batch, rows const& answer, leftover& left);
    void blame(operations one, call_failure const& e, leftover& left);
    void answer(operations& from, operations::iterator it, lease_outcome outcome);

    connection& link_;
    transition_queue& queue_;
    observer& watcher_;
    std::string const& node_;
    std::chrono::microseconds validity_;
    operations finished_;
    lease_answers answers_;
    line_limit refusals_{10};
    bool doubted_ = false; // one was refused for what may be a stale plan of the session's
};

// One of the lanes among which agents are divided. Passes over what somebody else holds, and puts
// aside what fails for a reason of its own.
class transition_lane {
public:
    transition_lane(unsigned number, session_context const& context, std::string const& node,
                    std::size_t board_number, transition_queue& queue, stop_signal& stop);
    void join() { thread_.join(); }

private:
    void run();

    unsigned number_;
    transition_queue& queue_;
    stop_signal& stop_;
    observer& watcher_;
    connection link_;
    transition_batch batch_;
    std::thread thread_;
};

// Where the lanes put what they found busy, and what took them too long or waited for a lock. One
// stuck agent delays only itself.
class busy_lane {
public:
    busy_lane(session_context const& context, std::string const& node, std::size_t board_number,
              transition_queue& queue, stop_signal& stop);
    void join() { thread_.join(); }

private:
    void run();
    void put_back(transition_batch::leftover left);
    void back_off(operations busy);

    transition_queue& queue_;
    stop_signal& stop_;
    observer& watcher_;
    std::chrono::milliseconds call_timeout_;
    connection link_;
    transition_batch batch_;
    std::thread thread_;
};

} // namespace presenced::db
