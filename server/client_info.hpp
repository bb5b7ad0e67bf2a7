// What is known of a client before it speaks WebSocket: who it is, and where it comes from.
#pragma once

#include "db/store.hpp"
#include "server/admission.hpp"

#include <cstdint>

namespace presenced::server {

struct client_info {
    admission_ticket ticket;
    std::uint64_t number = 0; // names the connection in the log
    bool authorized = false;  // false: it is upgraded only to be told so
    db::token_id token = 0;
    presence::owner_id owner = 0;
    // When the token ends; max() when it does not.
    presence::time_point expires_at = presence::time_point::max();
};

} // namespace presenced::server
