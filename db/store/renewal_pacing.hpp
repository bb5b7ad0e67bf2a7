// Which leases are renewed next, and which are vouched for. Time and events go in, the next batch
// comes out: no thread, no lock, no clock and no database.
//
// Words. A renewal is *held* when somebody else holds its row, or when the call for it failed. A
// held renewal is tried again after every tick, and nobody waits for it. Until it is answered it is
// *vouched* for: the node's tick says that there was evidence of its client, and nobody reaps it.
#pragma once

#include "db/store/answers.hpp"
#include "db/store/store.hpp"

#include <chrono>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

class call_failure;

// One thread's. A batch that is handed out is ended by exactly one of answered(), give_back(),
// hold() and put_off(), or all that are out by abort().
class renewal_pacing {
public:
    using time_point = std::chrono::steady_clock::time_point;
    static constexpr std::size_t batch_limit = 2000;

    struct settings {
        std::chrono::milliseconds tick;      // from one tick to the next
        std::chrono::milliseconds gathering; // how long a batch waits for more, at least
        std::chrono::milliseconds overdue;   // a renewal that has waited so long is vouched for
    };
    renewal_pacing(settings const& s, time_point now);

    // In the order of their tokens.
    struct element {
        lease_token token;
        agent_id agent;
    };
    using batch = std::vector<element>;

    // True: look again at when the next call is due.
    bool add(renew_request const& request, time_point now);
    void forget(lease_token const& token);

    // ---- When.

    // A tick is due, or renewals have gathered for long enough.
    bool is_due(time_point now) const;
    time_point due_at() const;
    // Whether a tick is due. Then the next one is due a tick later.
    bool take_tick(time_point now);
    time_point next_tick() const { return next_tick_; }

    // ---- What.

    batch take(time_point now);
    // A round over the held renewals that are due, the large batches first: a few that fail alone
    // do not keep the others waiting.
    void begin_round(time_point now);
    batch take_of_round(); // empty at the end of the round

    // ---- What became of it.

    // Adds an answer for each renewal that is not in `held`. Both lists are sorted.
    void answered(batch const& sent, std::vector<std::string> const& missing,
                  std::vector<std::string> const& held, lease_answers& answers);
    void give_back(batch const& sent) noexcept;
    void hold(batch const& sent) noexcept;
    // Held, and not the fault of all: renewals that failed together are tried in smaller batches;
    // one that failed alone is tried after a pause, which is returned.
    std::chrono::milliseconds put_off(batch const& sent, bool overran, time_point now);
    // Whatever is out is to be sent again.
    void abort() noexcept;

    // ---- Questions.

    std::vector<std::string_view> vouched(time_point now) const;
    std::size_t depth() const { return waiting_.size() + held_.size() + in_flight_.size(); }
    // Of the oldest that is waiting or in flight; `now` when there is none.
    time_point oldest(time_point now) const;

private:
    struct renewal {
        agent_id agent;
        mailbox* box;
        std::uint64_t key;
        time_point since;
        std::size_t at_most = batch_limit; // so many share a call with it; fewer once one failed
        time_point not_before{};           // it failed alone; until then it is left in peace
        unsigned failures = 0;
        bool forgotten = false; // while in flight
    };
    using renewals = std::map<lease_token, renewal>;

    renewal* find_out(lease_token const& token);

    settings settings_;
    time_point next_tick_;
    time_point not_before_;
    renewals waiting_;
    renewals held_;        // also while they are asked again
    renewals in_flight_;   // of those that are not held
    lease_token cursor_{}; // where the next batch begins, so that no part of the keys starves
    std::map<std::size_t, std::vector<lease_token>, std::greater<>> round_; // by at_most
};

// What follows a renewal's call that failed. `tick`: the call was to tick, too.
enum class renewal_verdict : std::uint8_t {
    put_off,         // the batch is held; the tick goes alone
    ask_tick,        // the tick tells whose fault it is: where it fails, too, it is everybody's
    split,           // one of several is to blame: they are sent again in parts
    give_back,       // everybody's fault
    pass_over,       // somebody holds one of the rows: again, past rows that are held
    without_tick,    // somebody holds the tables of the tick: again, without it
    ask_tick_slowly, // the table's lock, or that of a trigger: the tick tells
    rest,            // somebody holds the table
};
renewal_verdict judge_renewal(call_failure const& failure, std::size_t renewals, bool skip_locked,
                              bool tick, bool may_tick);

} // namespace presenced::db
