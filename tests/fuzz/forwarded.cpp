// Any X-Forwarded-* fields, from any peer. The input is five lines: peer, trusted block, Host,
// X-Forwarded-For, X-Forwarded-Host.
#include "server/http/forwarded.hpp"
#include "tests/fuzz/check.hpp"

#include <stdexcept>
#include <vector>

using namespace presenced::server;
namespace ip = boost::asio::ip;

namespace {

ip::address address_in(std::string_view text) {
    boost::system::error_code ec;
    auto const address = ip::make_address(std::string(text), ec);
    return ec ? ip::address(ip::address_v4(0x0A000001)) : address; // 10.0.0.1
}

std::vector<cidr> blocks_in(std::string_view text) {
    try {
        return {parse_cidr(text)};
    } catch (std::invalid_argument const&) {
        return {parse_cidr("10.0.0.0/8")};
    }
}

bool is_trusted(std::string const& shown, std::vector<cidr> const& trusted) {
    auto const address = ip::make_address(shown);
    auto const bytes = address.is_v4()
                           ? ip::make_address_v6(ip::v4_mapped, address.to_v4()).to_bytes()
                           : address.to_v6().to_bytes();
    return std::any_of(trusted.begin(), trusted.end(),
                       [&](cidr const& block) { return block.contains(bytes); });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto rest = text_of(data, size);
    auto const peer = address_in(take_line(rest));
    auto const trusted = blocks_in(take_line(rest));
    std::string const host(take_line(rest));
    std::string const by(take_line(rest));
    std::string const at(take_line(rest));

    auto const found = find_client(peer, host, by, at, trusted);
    auto const alone = find_client(peer, host, {}, {}, trusted);
    check(alone.host == host);
    if (!is_trusted(alone.address, trusted)) {
        // Whoever is no proxy of ours cannot say that it is somebody else.
        check(found.address == alone.address && found.host == host);
        return 0;
    }
    // What stands further left, anybody may have written.
    auto const forged =
        find_client(peer, host, "198.51.100.7, " + by, "forged.example, " + at, trusted);
    check(is_trusted(found.address, trusted) || forged.address == found.address);
    check(forged.host == found.host || at.find_last_not_of(" \t") == std::string::npos ||
          at[at.find_last_not_of(" \t")] == ',');
    // Another trusted hop in between changes nothing.
    auto const hop =
        find_client(peer, host, by + (by.empty() ? "" : ", ") + alone.address, at, trusted);
    check(hop.address == found.address);
    return 0;
}
