// One subscription as its shard keeps it: the lease, and who holds it. It outlives its holder until
// the database has answered the release.
#pragma once

#include "presence/lease.hpp"
#include "server/node/metrics.hpp"

#include <boost/intrusive/set_hook.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

namespace presenced::server {

struct subscription;

// Who holds leases, as their table sees it (leases.hpp). Called on the shard's thread.
class lease_holder {
public:
    // The lease has moved on, or the time of its renewal: it is to be filed anew. For bookkeeping
    // alone; what follows from it is the next call.
    virtual void on_moved(subscription& s) noexcept = 0;
    virtual void on_confirmed(subscription& s) = 0;
    // The subscription is destroyed after these two.
    virtual void on_rejected(subscription& s) = 0;
    virtual void on_lease_lost(subscription& s) = 0;
    // The agent is somebody else's by now. The row is still there: the holder gives the lease up.
    virtual void on_owner_changed(subscription& s) = 0;
    // The store had no room for the acquire: it is unsent again.
    virtual void on_no_room(subscription& s) = 0;
    // A renewal was answered: the next one has its time.
    virtual void on_renewed() = 0;
    // What was to be done for the holder failed half-way.
    virtual void fail(std::string_view what, std::exception const& why) = 0;

protected:
    ~lease_holder() = default;
};

// How many leases a shard has. Any thread may read them.
struct lease_counts {
    metrics& figures; // of the node: by state
    std::atomic<std::size_t> held{0};
};

// Counts one lease for as long as it lives, whatever ends it.
class counted_lease {
public:
    explicit counted_lease(lease_counts& counts);
    ~counted_lease();
    counted_lease(counted_lease const&) = delete;
    counted_lease& operator=(counted_lease const&) = delete;

    void moves_to(presence::lease_state state);

private:
    lease_counts& counts_;
    presence::lease_state counted_as_;
};

// Where its holder has filed a subscription (subscription_set).
enum class lease_group : std::uint8_t {
    unsent,   // by the time of the subscribe
    asked,    // by the time of the subscribe
    due,      // by the time of its renewal
    waiting,  // its renewal was due and waits for evidence
    renewing, // a renewal is under way
};

// The count is a base, so that the first members fit into its padding.
struct subscription : boost::intrusive::set_base_hook<boost::intrusive::optimize_size<true>>,
                      counted_lease {
    subscription(lease_counts& counts, presence::lease_token token, presence::time_point asked_at,
                 presence::agent_id on_agent, lease_holder& holder, std::string text)
        : counted_lease{counts}
        , lease{token, asked_at}
        , agent{on_agent}
        , owner{&holder}
        , identifier{std::move(text)} {}

    // The store does not have the request that the lease's state asks for: the acquire is still to
    // be sent, or a release that could not be.
    bool unsent = true;
    lease_group filed = lease_group::unsent;
    presence::lease lease;
    presence::agent_id agent;
    std::uint64_t key = 0;       // names it to the store; see slot_table
    lease_holder* owner;         // null once nobody waits for it any more
    std::string identifier;      // as the client wrote it; empty once nobody waits
    presence::owner_id user = 0; // in whose name the store was asked

    // Among those of all agents on this shard (hub.hpp). Leaves it when it is destroyed.
    using stream_hook = boost::intrusive::set_member_hook<
        boost::intrusive::link_mode<boost::intrusive::auto_unlink>,
        boost::intrusive::optimize_size<true>>;
    stream_hook in_hub;
};

} // namespace presenced::server
