// The renewal thread: renewals in key order with asynchronous commits, and the node's tick.
#pragma once

#include "db/answers.hpp"
#include "db/connection.hpp"
#include "db/line_limit.hpp"
#include "db/postgres_store.hpp"

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace presenced::db {

// Thread-safe. Renewals wait for nobody: a row that somebody else holds is passed over, retried
// with every tick, and vouched for meanwhile.
class renewer {
public:
    renewer(session_context const& context, postgres_options const& options,
            std::size_t board_number, stop_signal& stop);

    void push(renew_request request);
    void forget(lease_token const& token);
    void tell_outages(mailbox& box);

    // No tick from now on; renewals go on until the stop signal.
    void stop_ticking();
    // After the stop signal was raised.
    void wake();
    void join() { thread_.join(); }

    std::size_t depth() const;
    std::chrono::milliseconds oldest() const;

private:
    using time_point = std::chrono::steady_clock::time_point;
    static constexpr std::size_t batch_limit = 2000;
    struct renewal {
        agent_id agent;
        mailbox* box;
        std::uint64_t key;
        time_point since;
        // How many may share a call with it; fewer once a call with it has failed.
        std::size_t company = batch_limit;
        time_point not_before{}; // it failed alone; until then it is left in peace
        unsigned failures = 0;
    };
    using renewals = std::map<lease_token, renewal>;

    void run();
    bool look();
    bool may_tick() const;
    bool wait_for_work(time_point next_tick, time_point not_before);
    renewals take();
    // Rows that are held go to `held_`, poisoned and slow ones too; failures come back to the
    // queue. False: it failed, and not at once, so that the next suspect had better wait for a
    // tick.
    bool send(renewals batch, bool skip_locked, bool tick);
    bool send_parts(renewals batch, bool skip_locked, bool tick);
    void call(renewals& batch, bool skip_locked, bool tick);
    void put_off(renewals batch, call_failure const& e);
    void give_back(renewals batch);
    void hold(renewals batch);
    void retry_held(time_point next_tick);
    void say_goodbye();
    std::string vouches() const;

    postgres_options const& options_;
    status_board& board_;
    observer& watcher_;
    stop_signal& stop_;
    connection link_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    renewals waiting_;
    renewals held_;                         // somebody else holds their rows, or they failed
    std::map<lease_token, bool> in_flight_; // true: forgotten
    std::vector<mailbox*> outage_boxes_;
    bool ticking_ = true;
    bool stopping_ = false;
    lease_token cursor_; // where the next batch begins, so that no part of the key space starves
    time_point oldest_in_flight_ = time_point::max();
    line_limit refusals_{10};
    std::thread thread_;
};

} // namespace presenced::db
