// The leases of one shard: their table, the driver of their state machines, and the grace of those
// whose socket was lost.
// Knows who holds a lease by the interface alone (lease_holder), and the store by its verbs.
// On the shard's thread, except for held().
#pragma once

#include "db/store/store.hpp"
#include "server/cable/hub.hpp"
#include "server/cable/subscription.hpp"
#include "server/loop/slot_table.hpp"
#include "server/loop/wheel.hpp"
#include "server/node/node.hpp"

#include <cstddef>
#include <deque>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace presenced::server {

class leases {
public:
    // The store's answers come to `box`, which hands them to on_answers().
    leases(node& shared, wheel& timers, db::mailbox& box);

    // Starts a lease: it is attached to the agent's stream before it is asked for (P7).
    subscription& add(lease_holder& holder, presence::agent_id agent, std::string identifier);
    // Asks the store for one that is unsent; again, when the store had no room for it.
    void ask(subscription& s, presence::owner_id user, std::optional<std::string> session_id);
    // Its holder does not want it any more, and has forgotten it.
    void give_up(subscription& s, presence::release_reason why);
    // The same, but the lease stays as it is for disconnect_grace, which begins with a renewal if
    // there is evidence for one.
    void linger(subscription& s, wheel::clock::time_point evidence);
    // The node goes away, and nobody comes back to it: graces end.
    void end_graces();
    // Renews what is due; false when a due renewal has to wait for evidence.
    bool renew(subscription& s, wheel::clock::time_point now, wheel::clock::time_point evidence);

    // Whether somebody is attached to the agent's stream (P7).
    bool has_listener(presence::agent_id agent) const { return hub_.has_listener(agent); }
    // Leases that the database has yet to release. Any thread.
    std::size_t held() const { return counts_.held.load(std::memory_order_relaxed); }

    // The agents of live leases, each with the owner in whose name it was asked for; ascending,
    // each once.
    std::vector<db::held_agent> held_agents();

    // From the store.
    void on_answers(std::span<db::lease_answer const> answers);
    // Of held_agents(), those whose agent has another owner by now.
    void on_owners_changed(std::vector<db::held_agent> lost);
    void on_database_back(std::minstd_rand& random);

private:
    // Feeds an event to the lease, keeps the books, and carries out what it asks for.
    template <class Event>
    void drive(subscription& s, Event event);
    void perform(subscription& s, presence::action what);
    void send_end(subscription& s) noexcept;
    void bury_if_over(subscription& s);
    void on_answer(subscription& s, db::lease_outcome outcome);
    void end_graces_until(wheel::clock::time_point now);
    void send_ends_again(wheel::clock::time_point now);
    db::store& store() { return *shared_.store.load(std::memory_order_relaxed); }

    node& shared_;
    wheel& timers_;
    db::mailbox& box_;
    lease_counts counts_;
    hub hub_;
    slot_table<subscription> table_;
    struct lingering {
        wheel::clock::time_point until;
        std::uint64_t key;
    };
    std::deque<lingering> lingering_; // in order of time: the grace is the same for all
    chore<leases> grace_{*this, &leases::end_graces_until};
    chore<leases> retry_{*this, &leases::send_ends_again};
};

} // namespace presenced::server
