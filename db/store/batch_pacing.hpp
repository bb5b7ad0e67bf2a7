// Which acquires and releases go to the database next. Time and events go in, the next batch comes
// out: no thread, no lock, no clock and no database.
//
// Words. An agent is *busy* when another transaction holds its row, or when the database wants its
// acquire to wait. A lane does not wait: it hands the agent to the busy lane, which tries it again.
// An agent is a *suspect* when a call for it alone took too long or met a lock timeout. A suspect
// goes through the busy lane too, one suspect a call. A suspect is cleared by its next call that
// ends in time and changes a row of the agent. A refusal changes none, and clears no suspect.
#pragma once

#include "db/store/operation.hpp"

#include <chrono>
#include <list>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace presenced::db {

class call_failure;

// Everything that waits, in flight or not. One thread's; lanes are numbered from 0.
//
// Owners are served in turn: a batch takes one request of each owner that has one, then the next
// of each. An owner's requests for one agent keep their order. Where two owners have been served
// within a second, one owner gets no more than `share` places of a lane's batch: whoever comes in
// the middle of a batch waits for it, and a small one is over soon. One owner alone gets them all.
//
// A batch that is handed out comes back by exactly one of give_back(), defer(), delay(), suspect()
// and finish(). Where one of them throws (there is no memory), the requests that it did not get to
// are still in the batch; give_back() does not throw.
class batch_pacing {
public:
    using time_point = std::chrono::steady_clock::time_point;

    // Acquires that may wait for an answer. Beyond, clients are better served elsewhere or later.
    // An owner whose own share is not used up is still taken in, up to `most_acquires` in all.
    static constexpr std::size_t acquire_limit = 65'536;
    static constexpr std::size_t most_acquires = 4 * acquire_limit;

    static constexpr std::size_t share = 50;

    explicit batch_pacing(unsigned lanes);
    batch_pacing(batch_pacing const&) = delete;
    batch_pacing& operator=(batch_pacing const&) = delete;

    // False: too many acquires wait already.
    bool add(acquire_request request);
    void add(release_request const& request);
    // Returns the acquire if it is over with that: it was never sent.
    std::optional<operation> abandon(lease_token const& token);

    // Adds a lane's next requests to `batch`, up to `limit`; none when nothing is due. A delayed
    // request comes alone.
    void next(unsigned lane, std::size_t limit, time_point now, operations& batch);
    // When a delayed request of the lane is due; max() when there is none.
    time_point next_due(unsigned lane) const;
    // The same of the busy lane: of each owner the agents that have waited longest. A suspect comes
    // alone.
    void next_busy(std::size_t limit, time_point now, operations& batch);
    time_point next_busy_due() const;

    // Each of these adds to `dropped` the acquires that were taken back meanwhile and never done.

    // Back to the front of their lanes.
    void give_back(operations& batch, operations& dropped);
    // To the busy lane, not before `due`.
    void defer(operations& batch, time_point due, operations& dropped);
    // Back to their lanes, each alone, not before `due`.
    void delay(operations& batch, time_point due, operations& dropped);
    // To the busy lane, and their agents are suspects from now on. What comes for a suspect goes to
    // the busy lane too, until a call for it has changed a row and ended in time, or until nobody
    // has seen one fail for two minutes. What waits for a suspect already, of whichever owner, is
    // not due before `pause` is over.
    // Returns whether one of them was none before.
    bool suspect(operations& batch, time_point now, std::chrono::milliseconds pause,
                 operations& dropped);

    // Answered, or about to be.
    void finish(operations const& batch);

    unsigned lane_of(agent_id agent) const;
    std::size_t lanes() const { return lanes_.size(); }
    std::size_t depth(unsigned lane) const;
    std::size_t busy_depth() const { return busy_count_; }
    std::size_t releases() const { return releases_; } // unanswered
    bool is_suspect(agent_id agent, time_point now) const;

private:
    enum class place : std::uint8_t { in_flight, lane, delayed, busy };
    struct whereabouts {
        place where;
        operations* home; // null while in flight
        operations::iterator it;
        bool abandoned = false; // while in flight
    };
    struct suspicion {
        time_point ends;
        time_point not_before; // its next call
    };

    // What waits of one owner in one lane, or in the busy lane. `turn` is its place among those of
    // the other owners, whether it has work or not: nodes are moved, not made.
    struct line;
    struct owner;
    using turns = std::list<line*>;
    // When an agent in the busy lane is due. Among those due at a time, who came first.
    struct due_entry {
        time_point due;
        std::uint64_t number;
        agent_id agent;
        owner* whose;
        bool operator<(due_entry const& other) const {
            return std::pair{due, number} < std::pair{other.due, other.number};
        }
    };
    using due_entries = std::set<due_entry>;
    // What one owner has in the busy lane for one agent; never empty between two calls.
    struct busy_agent {
        operations waiting;
        due_entry entry; // as it is in suspects_due_, or else in the owner's `due`
        bool is_suspect = false;
    };
    using busy_agents = std::map<std::pair<agent_id, owner_id>, busy_agent>;
    struct line {
        owner* whose = nullptr;
        operations waiting; // of a lane
        turns::iterator turn{};
        bool in_turn = false;
        std::uint64_t batch = 0; // the newest that took of it, and how many
        std::size_t taken = 0;
    };
    struct owner {
        owner_id id = 0;
        std::size_t acquires = 0;             // unanswered
        std::size_t unanswered = 0;           // and releases
        std::vector<line> lines;              // by lane, and the busy lane's last
        due_entries due;                      // its agents in the busy lane that are no suspects
        time_point wakes = time_point::max(); // as it is in waking_
    };
    struct ring {
        turns waiting; // lines with work, whose turn it is in front
        turns idle;
    };
    struct lane {
        ring owners;
        std::size_t waiting = 0;
        std::uint64_t batches = 0;
        std::optional<owner_id> latest;                // who was served last
        time_point shared_until{};                     // two owners were served within a second
        std::multimap<time_point, operations> delayed; // one operation each, or none any more
        bool delayed_next = false;                     // whose turn it is when both have work
    };

    owner& owner_of(owner_id id);
    void forget(operation const& op, bool is_acquire);
    static void enter(ring& owners, line& one, bool in_front = false);
    static void leave(ring& owners, line& one);
    ring& ring_of(unsigned number);
    void add(operations one);
    void put(operations& home, place where, operations& from, operations::iterator it,
             bool in_front);
    void depart(operations& from, operations::iterator it, operations& batch);
    void convert(operation& op);
    void drop_abandoned(operations& batch, operations& dropped);
    suspicion const* suspicion_of(agent_id agent, time_point now) const;
    void put_busy(operations& from, operations::iterator it, time_point due, time_point now);
    due_entries& entries_of(busy_agent& one);
    void move_entry(busy_agent& one, due_entry entry, bool is_suspect);
    void set_waking(owner& whose);
    void clear_suspect(agent_id agent);
    void remove_busy(busy_agents::iterator one);
    busy_agents::iterator busy_of(due_entry const& entry);
    void take_busy_of(busy_agents::iterator one, std::size_t count, time_point now,
                      operations& batch);
    void take_delayed(lane& from, time_point now, operations& batch);

    std::vector<lane> lanes_;
    // Nothing here is walked from end to end: a node may have tens of thousands of busy owners.
    busy_agents busy_;
    ring busy_owners_; // `waiting`: those of whom an agent was due when a batch was last taken
    std::set<std::pair<time_point, owner*>> waking_; // all; max() where nothing is to come
    due_entries suspects_due_;                       // of all owners
    std::uint64_t busy_entries_ = 0;                 // that there ever were
    std::unordered_map<owner_id, owner> owners_;     // those with something unanswered
    std::size_t acquiring_owners_ = 0;
    std::map<agent_id, suspicion> suspects_;
    bool suspect_next_ = false; // whose turn it is when both are due
    std::size_t busy_count_ = 0;
    // Unanswered acquires that somebody wants.
    std::unordered_map<lease_token, whereabouts, std::size_t (*)(lease_token const&)> acquires_;
    std::size_t releases_ = 0;
};

// Before the next attempt after so many that failed.
std::chrono::milliseconds pause_after(unsigned failures, std::chrono::milliseconds longest);

// What a call that failed says of the requests in it.
enum class call_verdict : std::uint8_t {
    split,   // one of several is to blame: they are sent again in parts, to find it
    blame,   // the only one is to blame
    overran, // the server ended it for taking too long: one of its agents is stuck
    busy,    // the one agent that the call waited for is held
    locked,  // it met a lock that it could not pass over
    late,    // no answer, although the server would have ended the statement by then: what was
             // waited for is the commit, the server or the network, and not the requests
    failed,  // anything else: the connection broke, or the server refused for a reason of its own
};
// `waits`: the call waited for the rows of one agent. `took`: from its start to the failure.
call_verdict judge(call_failure const& failure, std::size_t requests, bool waits,
                   std::chrono::milliseconds took, std::chrono::milliseconds call_timeout);

// How large a lane's next batch is, and where those go that are to be sent again. One thread's.
class lane_pacing {
public:
    // Enough to spread the cost of a transaction, few enough to stay a matter of milliseconds.
    static constexpr std::size_t batch_limit = 200;

    std::size_t limit() const { return limit_; }

    // What became of a batch.
    struct account {
        std::size_t requests = 0;
        bool overran = false;
        bool again = false; // some are to be sent again
        bool locked = false;
        bool late = false;
        bool failed = false;
        unsigned failures = 0; // of the first of those: how often it failed alone before this time
    };
    struct decision {
        enum class way : std::uint8_t {
            front,   // to the front of the lane
            delay,   // each alone, after `pause`
            suspect, // to the busy lane
        };
        way again = way::front;
        std::chrono::milliseconds pause{0};
        std::chrono::milliseconds rest{0}; // the lane takes nothing for so long
    };
    decision after(account const& batch);

private:
    std::size_t limit_ = batch_limit;
    std::size_t searched_ = 0; // how many are to come in batches of limit_: one of them waits
    unsigned late_in_a_row_ = 0;
};

} // namespace presenced::db
