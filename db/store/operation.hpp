// An acquire or a release on its way to the database.
#pragma once

#include "db/store/store.hpp"

#include <list>
#include <optional>
#include <string>

namespace presenced::db {

struct operation {
    enum class kind : std::uint8_t { acquire, release };

    kind what;
    release_reason reason = release_reason::disconnected;
    agent_id agent;
    owner_id owner = 0; // who asked; 0: not known
    lease_token token;
    std::optional<std::string> session_id;
    mailbox* box;
    std::uint64_t key;

    // An attempt ended without an answer: it may have committed.
    bool maybe_done = false;
    // It was answered, and changed no row of the agent: it was refused, or found nothing to
    // release.
    bool changed_nothing = false;
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

// A list: a request is moved from hand to hand without an allocation that could fail.
using operations = std::list<operation>;

} // namespace presenced::db
