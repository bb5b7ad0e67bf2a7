// What is known of a client before it speaks WebSocket: who it is, and where it comes from.
#pragma once

#include "server/auth/identity.hpp"
#include "server/node/admission.hpp"

#include <cstdint>
#include <optional>

namespace presenced::server {

struct client_info {
    admission_ticket ticket;
    std::uint64_t number = 0;    // names the connection in the log
    std::optional<identity> who; // nobody: it is upgraded only to be told so
};

} // namespace presenced::server
