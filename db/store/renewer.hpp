// The renewal thread: renewals in key order with asynchronous commits, and the node's tick.
#pragma once

#include "base/line_limit.hpp"
#include "db/session/connection.hpp"
#include "db/store/answers.hpp"
#include "db/store/postgres_store.hpp"
#include "db/store/renewal_pacing.hpp"

#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
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
    using batch = renewal_pacing::batch;

    bool step();
    void note_generation();
    bool judge();
    bool may_tick() const;
    bool wait_for_work();
    // False: it failed, and not at once, so that the next suspect had better wait for a tick.
    bool send(batch renewals, bool skip_locked, bool tick);
    bool send_parts(batch const& renewals, bool skip_locked, bool tick);
    bool send_tick() { return send({}, true, true); }
    void call(batch const& renewals, bool skip_locked, bool tick);
    void put_off(batch const& renewals, call_failure const& e);
    void give_back(batch const& renewals);
    void retry_held();
    void say_goodbye();
    std::string vouches() const;

    postgres_options const& options_;
    status_board& board_;
    observer& watcher_;
    stop_signal& stop_;
    connection link_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    renewal_pacing pacing_;
    std::vector<mailbox*> outage_boxes_;
    bool ticking_ = true;
    bool stopping_ = false;
    unsigned generation_ = 0; // of the session that was looked through
    time_point next_judgement_;
    time_point judged_{};
    bool lost_in_judgement_ = false; // the newest session that was lost
    std::set<std::string> warned_;   // each once a process
    lease_answers answers_;
    base::line_limit refusals_{10};
    base::line_limit puzzles_{1};
    std::thread thread_;
};

} // namespace presenced::db
