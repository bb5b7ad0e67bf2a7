#include "server/http/forwarded.hpp"

#include "base/text.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

namespace presenced::server {

namespace {

namespace ip = boost::asio::ip;

std::array<std::uint8_t, 16> bytes_of(ip::address const& a) {
    return a.is_v6() ? a.to_v6().to_bytes()
                     : ip::make_address_v6(ip::v4_mapped, a.to_v4()).to_bytes();
}

bool is_trusted(ip::address const& a, std::span<cidr const> trusted) {
    auto const bytes = bytes_of(a);
    return std::any_of(trusted.begin(), trusted.end(),
                       [&](cidr const& block) { return block.contains(bytes); });
}

// IPv4 that arrived on an IPv6 socket is shown as what it is.
std::string show(ip::address const& a) {
    if (a.is_v6() && a.to_v6().is_v4_mapped()) {
        return ip::make_address_v4(ip::v4_mapped, a.to_v6()).to_string();
    }
    return a.to_string();
}

// Some proxies write `address:port`, `[address]` or `[address]:port`.
std::string_view without_port(std::string_view entry) {
    if (entry.starts_with('[')) {
        auto const end = entry.find(']');
        return end == entry.npos ? entry : entry.substr(1, end - 1);
    }
    auto const colon = entry.find(':');
    return colon != entry.npos && entry.find(':', colon + 1) == entry.npos ? entry.substr(0, colon)
                                                                           : entry;
}

// Takes the right-most entry off a list.
std::string_view take_last(std::string_view& list) {
    auto const comma = list.rfind(',');
    auto const entry = base::trim(comma == list.npos ? list : list.substr(comma + 1), base::blanks);
    list = comma == list.npos ? std::string_view{} : list.substr(0, comma);
    return entry;
}

} // namespace

client_of_request find_client(ip::address const& peer, std::string_view host,
                              std::string_view forwarded_for, std::string_view forwarded_host,
                              std::span<cidr const> trusted) {
    auto address = peer;
    if (!is_trusted(peer, trusted)) {
        return {show(address), std::string{host}};
    }
    while (!forwarded_for.empty() && is_trusted(address, trusted)) {
        auto const entry = take_last(forwarded_for);
        boost::system::error_code ec;
        auto const next = ip::make_address(std::string{without_port(entry)}, ec);
        if (ec) {
            break;
        }
        address = next;
    }
    auto const last = take_last(forwarded_host);
    return {show(address), std::string{last.empty() ? host : last}};
}

} // namespace presenced::server
