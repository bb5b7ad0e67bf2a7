// Acquires and releases on their way to the database: who waits for which lane, and what becomes
// of an acquire that is taken back on the way.
#pragma once

#include "db/store.hpp"

#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace presenced::db {

struct operation {
    enum class kind : std::uint8_t { acquire, release };

    kind what;
    release_reason reason = release_reason::disconnected;
    agent_id agent;
    owner_id owner = 0;
    lease_token token;
    std::optional<std::string> session_id;
    mailbox* box;
    std::uint64_t key;

    // An attempt ended without an answer: it may have committed.
    bool maybe_done = false;
    // An acquire that nobody wants any more. Once it may be done it turns into a release.
    bool abandoned = false;
    // Attempts that failed for its agent's sake, and for its own; each sets the pause before the
    // next.
    unsigned failures = 0;
    unsigned refusals = 0;

    // What its owner is told when `what` has succeeded or found nothing to do.
    lease_outcome released_outcome() const {
        return abandoned ? lease_outcome::abandoned : lease_outcome::released;
    }
};

using operations = std::list<operation>;

// Thread-safe. Lanes are numbered from 0; the busy lane has a queue of its own.
class transition_queue {
public:
    using time_point = std::chrono::steady_clock::time_point;

    explicit transition_queue(unsigned lanes);

    // False: too many acquires wait already.
    bool push(acquire_request request);
    void push(release_request request);
    // Returns the acquire if it is over with that: it was never sent.
    std::optional<operation> abandon(lease_token const& token);

    // Waits for work of a lane, up to `limit` operations; empty once stopped. What was delayed
    // comes alone.
    operations take(unsigned lane, std::size_t limit);
    // Waits for agents that are due another try, those that have waited longest first, up to
    // `limit` operations; a suspect comes alone.
    operations take_busy(std::size_t limit);

    // Back to the front of their lane. Returns those that were taken back meanwhile and never done.
    [[nodiscard]] operations give_back(operations batch);
    // To the busy lane; `pause`: not before. Returns those taken back, as above.
    [[nodiscard]] operations defer(operations batch, std::chrono::milliseconds pause);
    // Back to their lane, not before `pause` has passed. Returns those taken back, as above.
    [[nodiscard]] operations delay(operations batch, std::chrono::milliseconds pause);
    // To the busy lane, after a call that took too long or waited for a lock. Their agents are
    // suspects from now on: what comes for one goes to the busy lane too, until a call for it has
    // ended in time, or nobody has seen it fail for a while. Returns those taken back, as above.
    [[nodiscard]] operations suspect(operations batch, std::chrono::milliseconds pause);
    // Answered, or about to be.
    void finish(operations const& batch);

    // No more work is handed out.
    void stop();
    // Waits until no release is left; returns how many are.
    std::size_t wait_for_releases(time_point deadline);

    std::size_t depth(unsigned lane) const;
    std::size_t busy_depth() const;

private:
    struct whereabouts {
        operations* home; // null while in flight
        operations::iterator it;
        bool abandoned = false; // while in flight
    };
    struct busy_agent {
        operations waiting;
        time_point due;
    };
    struct suspicion {
        time_point ends;
        time_point not_before; // its next call
    };
    struct lane_queue {
        operations waiting;
        std::multimap<time_point, operations> delayed; // one operation each, or none any more
        bool delayed_next = false;                     // whose turn it is when both have work
        std::condition_variable changed;
    };

    lane_queue& lane_of(agent_id agent);
    void convert(operation& op);
    operations without_abandoned(operations& batch);
    void settle(operations& home, operations batch, bool in_front);
    void depart(operations& from, operations::iterator it, operations& batch);
    suspicion const* suspicion_of(agent_id agent) const;
    void put_busy(operations one, time_point due);
    void set_due(agent_id agent, time_point due);
    void forget_busy(agent_id agent);
    void take_busy_of(agent_id agent, std::size_t limit, operations& batch);
    operations take_delayed(lane_queue& lane);
    operations take_due(std::size_t limit);

    mutable std::mutex mutex_;
    std::vector<lane_queue> lanes_;
    std::unordered_map<agent_id, busy_agent> busy_;
    std::set<std::pair<time_point, agent_id>> due_; // the agents in busy_
    std::map<agent_id, suspicion> suspects_;
    bool suspect_next_ = false; // whose turn it is when both are due
    std::condition_variable busy_changed_;
    std::condition_variable released_;
    std::size_t busy_count_ = 0;
    // Unanswered acquires that somebody wants.
    std::unordered_map<lease_token, whereabouts, std::size_t (*)(lease_token const&)> acquires_;
    std::size_t releases_ = 0; // unanswered
    bool stopping_ = false;
};

} // namespace presenced::db
