// What presence needs of a database, as a few verbs; postgres_store is the real one.
#pragma once

#include "db/session/health.hpp"
#include "db/store/token_grant.hpp"
#include "presence/types.hpp"

#include <array>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

using presence::agent_id;
using presence::lease_token;
using presence::owner_id;
using presence::release_reason;

using token_digest = std::array<std::uint8_t, 32>; // SHA-256 of an access token

enum class lease_outcome : std::uint8_t {
    acquired,    // the row is committed
    refused,     // no such agent, or somebody else's
    abandoned,   // taken back: no row of this lease is left, nor will one come
    unavailable, // not even queued: too much waits already
    released,    // the row is gone, whoever removed it
    renewed,
    missing, // a renewal found no row: the lease is lost
};

struct lease_answer {
    std::uint64_t key; // the one of the request
    lease_outcome outcome;
};

enum class token_outcome : std::uint8_t {
    valid,
    unknown,
    expired,
    revoked,
    unavailable, // not even queued: too much waits already
};

struct token_answer {
    std::uint64_t key;
    token_outcome outcome;
    token_id id = 0;
    owner_id owner = 0;
    std::optional<std::chrono::milliseconds> expires_in; // by the database's clock
    token_role role = token_role::session;
    agent_list agents = nullptr;
};

// An agent, and the owner in whose name its sessions came in.
struct held_agent {
    agent_id agent = 0;
    owner_id owner = 0;
    auto operator<=>(held_agent const&) const = default;
};

// Of what was asked about, what does not hold any more.
struct check_answer {
    // The token is revoked, expired or gone, or its row says another owner, role or agents.
    std::vector<token_grant> ended;
    // The agent has another owner by now. An agent that is gone is not in here: its row is gone,
    // too, and the next renewal says so.
    std::vector<held_agent> lost;
};

// Where answers go: one call a batch, on a database thread, soon to be elsewhere. Must outlive
// the store, may not block, may not throw.
class mailbox {
public:
    virtual void deliver(std::vector<lease_answer> answers) = 0;
    virtual void deliver(std::vector<token_answer> answers) = 0;
    virtual void deliver(check_answer answer) = 0;
    // The database was away and is back: commits of renewals may have been lost with it.
    virtual void database_back() = 0;

protected:
    ~mailbox() = default;
};

struct acquire_request {
    agent_id agent;
    owner_id owner;
    lease_token token;
    std::optional<std::string> session_id;
    mailbox* box;
    std::uint64_t key;
};

struct release_request {
    agent_id agent;
    lease_token token;
    release_reason reason;
    mailbox* box;
    std::uint64_t key;
    owner_id owner = 0; // of the acquire; owners are served in turn
};

struct renew_request {
    agent_id agent;
    lease_token token;
    mailbox* box;
    std::uint64_t key;
};

struct authenticate_request {
    token_digest digest;
    mailbox* box;
    std::uint64_t key;
};

struct check_request {
    std::vector<token_grant> tokens;
    std::vector<held_agent> agents;
    mailbox* box;
};

// Every verb returns at once, from any thread; its answer comes to the mailbox exactly once.
// Nothing is dropped while the database is away: requests wait and are retried until they are
// answered, safe to repeat because a lease token is minted once.
class store {
public:
    virtual ~store() = default;

    virtual void acquire(acquire_request request) = 0;
    // Takes an unanswered acquire back. It is still answered: `abandoned`, or, when its answer was
    // already on its way, `acquired` or `refused`.
    virtual void abandon(agent_id agent, lease_token const& token) = 0;
    virtual void release(release_request request) = 0;
    virtual void renew(renew_request request) = 0;
    // The renewal is not wanted any more (its lease ended); it may still be answered.
    virtual void forget_renewal(agent_id agent, lease_token const& token) = 0;
    virtual void authenticate(authenticate_request request) = 0;
    virtual void check(check_request request) = 0;

    // Mailboxes to tell when the database is back. Before the first request; kept until the end.
    virtual void subscribe_to_outages(mailbox& box) = 0;

    virtual store_health health() const = 0;

    // Stops the sweep and the ticks, waits until every release that was asked for is answered or
    // `deadline` has passed, then stops the threads. Returns the number of releases left undone.
    virtual std::size_t stop(std::chrono::steady_clock::time_point deadline) = 0;
};

} // namespace presenced::db
