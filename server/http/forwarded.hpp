// Who a request comes from, and for which host, when trusted proxies stand in between.
// Pure; any thread.
#pragma once

#include "server/node/config.hpp"

#include <boost/asio/ip/address.hpp>

#include <span>
#include <string>
#include <string_view>

namespace presenced::server {

struct client_of_request {
    std::string address;
    std::string host;
};

// X-Forwarded-For and -Host count only when `peer` is a trusted proxy. The address is then the
// right-most entry that is no trusted proxy itself (what stands left of it anybody can write), the
// host the right-most one. An entry that is no address ends the search: the last good one counts.
client_of_request find_client(boost::asio::ip::address const& peer, std::string_view host,
                              std::string_view forwarded_for, std::string_view forwarded_host,
                              std::span<cidr const> trusted);

} // namespace presenced::server
