// `presenced health`: asks a running server whether it is alive.
#pragma once

#include "server/node/config.hpp"

#include <optional>
#include <string>

namespace presenced::server {

// Asks the URL, or /healthz where PRESENCED_LISTEN says (on loopback when it listens on all
// addresses). Exit code 0 when the answer is 200, else 1. Throws bad_setting.
int health_command(config_source const& source, std::optional<std::string> const& url, bool json);

} // namespace presenced::server
