// `presenced connect`: a client for a person who wants to see what a session sees.
#pragma once

#include "server/node/config.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace presenced::server {

struct connect_options {
    std::optional<std::string> url; // nothing: from PRESENCED_LISTEN and PRESENCED_PATH
    std::vector<std::int64_t> agents;
    std::optional<std::string> session_id;
    std::string channel = "AgentChannel";
    bool json = false;
    bool once = false;
};

// Runs until SIGINT or SIGTERM (exit code 0, after a clean close) or until the server refuses for
// good (1). The token is PRESENCED_TOKEN. Throws bad_setting.
int connect_command(config_source const& source, connect_options const& options);

} // namespace presenced::server
