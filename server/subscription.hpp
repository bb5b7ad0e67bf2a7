// One subscription as its shard keeps it: the lease, and who it is for. It outlives its connection
// until the database has answered the release.
#pragma once

#include "presence/lease.hpp"

#include <cstdint>
#include <string>

namespace presenced::server {

class cable_connection;

struct subscription {
    presence::lease lease;
    presence::agent_id agent;
    std::uint64_t key = 0;             // names it to the store; see slot_table
    cable_connection* owner = nullptr; // null once nobody waits for it any more
    std::string identifier{};          // as the client wrote it; empty once nobody waits
    presence::time_point asked_at{};
    bool unsent = true; // the store does not have it: the acquire is still to be asked for

    // The agent's stream on this shard (hub.hpp).
    subscription* stream_next = nullptr;
    subscription** stream_link = nullptr;
};

} // namespace presenced::server
