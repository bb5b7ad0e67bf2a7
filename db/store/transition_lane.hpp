// The threads that write acquires and releases: one function call a batch.
#pragma once

#include "base/line_limit.hpp"
#include "db/session/connection.hpp"
#include "db/store/answers.hpp"
#include "db/store/transition_queue.hpp"

#include <list>
#include <string>
#include <thread>

namespace presenced::db {

// Sends batches over one connection and sorts what comes back. One thread's.
//
// A request is always in exactly one place: with the caller, in here, or in the queue. Whatever
// throws, put_down() finds it.
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
        // Why some are to be sent again (call_verdict).
        bool locked = false;
        bool late = false;
        bool failed = false;
    };
    // Does not throw call_failure; the connection may be gone afterwards. `batch` is empty then.
    leftover& run(operations& batch, bool waits);

    // For a lane that has nothing to send. If the newest call failed, makes an empty one: its
    // success tells the status board that the lane works again. Does not throw call_failure; the
    // connection may be gone afterwards.
    void prove();

    // Each moves requests from `left` to the queue, and answers those that were taken back.
    void give_back(operations& again);
    void defer(operations& busy, std::chrono::milliseconds pause);
    void delay(operations& later, std::chrono::milliseconds pause);
    void suspect(operations& stuck, char const* cause, std::chrono::milliseconds pause);
    // The same for each request by itself, with a pause that grows with its failures.
    void set_aside(operations& poisoned); // comes back to its lane alone
    void back_off(operations& held, std::chrono::milliseconds longest);
    void suspect_each(operations& stuck, std::chrono::milliseconds longest);

    // Everything that is still in here back to the queue, after an exception. Does not throw.
    void put_down(operations& batch) noexcept;
    // Answers that could not be delivered, for want of memory.
    void deliver();

private:
    void send(operations& part, bool waits);
    void split(operations& part);
    void sort(operations& part, rows const& reply);
    void blame(operations& one, call_failure const& e);
    void puzzle(operations& part, operations::iterator it, char const* why);
    bool one_by_one(operations& from);
    void tell_suspect(agent_id agent, char const* cause);
    void answer(operations& from, operations::iterator it, lease_outcome outcome);

    connection& link_;
    transition_queue& queue_;
    observer& watcher_;
    std::string const& node_;
    std::chrono::milliseconds call_timeout_;
    std::list<operations> parts_; // to be sent, one call each
    leftover left_;
    operations one_;      // on its way from `left_` to the queue
    operations finished_; // their answers are in answers_
    operations dropped_;  // taken back before they could be sent, and not yet in answers_
    lease_answers answers_;
    base::line_limit refusals_{10};
    base::line_limit puzzles_{1};
    base::line_limit suspicions_{1};
    bool doubted_ = false; // the session's plans may be stale: one request was refused for that
};

// One of the lanes among which agents are divided. Passes over what somebody else holds, and puts
// aside what fails for a reason of its own.
class transition_lane {
public:
    transition_lane(unsigned number, session_context const& context, std::string const& node,
                    std::size_t board_number, transition_queue& queue, stop_signal& stop);
    void join() { thread_.join(); }

private:
    bool step();
    bool put_back(transition_batch::leftover& left, std::size_t size);

    unsigned number_;
    transition_queue& queue_;
    stop_signal& stop_;
    observer& watcher_;
    connection link_;
    transition_batch batch_;
    lane_pacing pacing_;
    operations work_;
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
    bool step();
    void put_back(transition_batch::leftover& left);

    transition_queue& queue_;
    stop_signal& stop_;
    observer& watcher_;
    std::chrono::milliseconds call_timeout_;
    connection link_;
    transition_batch batch_;
    operations work_;
    std::thread thread_;
};

} // namespace presenced::db
