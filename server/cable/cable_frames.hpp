// The frames that are the same for every client, encoded once.
#pragma once

#include "protocol/message.hpp"
#include "server/cable/outbox.hpp"

namespace presenced::server {

frame const& welcome();
frame const& goodbye(protocol::disconnect_reason why);

} // namespace presenced::server
