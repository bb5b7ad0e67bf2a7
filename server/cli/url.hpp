// `scheme://host:port/target`, as the command line takes it.
#pragma once

#include "server/node/config.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::server {

struct url {
    std::string scheme;
    std::string host; // without brackets
    std::uint16_t port;
    std::string target; // begins with /

    std::string show() const;
};

// `schemes`: those allowed; the port is 80 when there is none. An empty path becomes
// `default_target`. Throws bad_setting, which names `setting`; a URL may hold no user or password.
url parse_url(std::string_view text, std::vector<std::string_view> const& schemes,
              std::string_view default_target, std::string_view setting);

// Where a server that listens there is reached from this machine, first choice first: loopback for
// one that listens on all addresses. Throws bad_setting for port 0, which names no port.
std::vector<endpoint> reachable_at(std::vector<endpoint> const& listen);

} // namespace presenced::server
