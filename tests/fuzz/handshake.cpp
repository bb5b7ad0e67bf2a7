// Any headers of an upgrade request. The input is six lines: origin, host, list entry,
// subprotocols, target, authorization; what is missing is empty.
#include "protocol/credentials.hpp"
#include "protocol/origin.hpp"
#include "protocol/subprotocol.hpp"
#include "tests/fuzz/check.hpp"

#include <array>
#include <string>

using namespace presenced::protocol;

namespace {

std::string lower(std::string_view text) {
    std::string low(text);
    std::transform(low.begin(), low.end(), low.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    return low;
}

std::string escape(std::string_view text) {
    std::string escaped;
    for (char const c : text) {
        auto const byte = static_cast<unsigned char>(c);
        escaped += '%';
        escaped += "0123456789ABCDEF"[byte >> 4U];
        escaped += "0123456789abcdef"[byte & 0xFU];
    }
    return escaped;
}

// The name in `host` or `host:port`, brackets and all.
std::string_view name_of(std::string_view host) {
    auto const bracket = host.find(']');
    return host.substr(0, host.find(':', bracket == std::string_view::npos ? 0 : bracket));
}

void check_origin(std::string_view origin, std::string_view host, std::string_view entry) {
    std::array<std::string, 1> const list{std::string(entry)};
    bool const by_host = is_origin_allowed(origin, host, {});
    bool const by_list = is_origin_allowed(origin, {}, list);
    check(is_origin_allowed(origin, host, list) == (by_host || by_list));
    check(!by_list || is_origin_pattern(entry));
    // Nobody gets in whose origin does not spell the host's name, or the entry's, to its end.
    auto const said = lower(origin);
    auto const begin = host.find_first_not_of(" \t");
    auto const trimmed = begin == std::string_view::npos ? std::string_view() : host.substr(begin);
    auto const ends_with_name = [&](std::string_view name) {
        auto const wanted = lower(name);
        for (auto at = said.find(wanted); at != std::string::npos; at = said.find(wanted, at + 1)) {
            auto const after = said.substr(at + wanted.size());
            if (after.find_first_not_of(":/?# \t") != 0) {
                return true;
            }
        }
        return false;
    };
    check(!by_host ||
          ends_with_name(name_of(trimmed.substr(0, trimmed.find_last_not_of(" \t") + 1))));
    auto listed = entry.substr(std::min(entry.find("://") + 3, entry.size()));
    if (entry.find("://") == std::string_view::npos) {
        listed = entry;
    }
    listed.remove_prefix(listed.starts_with("*.") ? 2 : 0);
    check(!by_list || entry == "*" || ends_with_name(name_of(listed)));
    // The entry that the log proposes is taken, allows the page, and no other site's.
    if (auto const proposed = pattern_for_origin(origin)) {
        std::array<std::string, 1> const proposal{*proposed};
        check(is_origin_pattern(*proposed) && is_origin_allowed(origin, {}, proposal));
        check(said.find("evil.example") != std::string::npos ||
              !is_origin_allowed("https://evil.example", {}, proposal));
    }
    // A page of the host itself always gets in, whatever scheme its proxy spoke.
    if (is_origin_pattern(host) && is_host(host) && host.front() != '*' && host != "null") {
        check(is_origin_allowed("https://" + std::string(host), host, {}));
        check(is_origin_allowed("http://" + lower(host) + "/x", host, {}));
    }
    // A file and a sandboxed page never by their host.
    check(!is_origin_allowed("null", host, {}));
}

void check_subprotocol(std::string_view offered) {
    auto const chosen = choose_subprotocol(offered);
    check(chosen.empty() || offered.find(chosen) != std::string_view::npos);
    // The client's order counts, and names that are none do not.
    for (std::string const first : {"actioncable-unsupported", "actioncable-v1-json"}) {
        check(choose_subprotocol(first + ", " + std::string(offered)) == first);
    }
    check(choose_subprotocol("chat , ," + std::string(offered)) == chosen);
}

void check_token(std::string_view target, std::string_view authorization) {
    auto const token = find_token(target, authorization);
    check(!token || !token->empty());
    // Any token survives its way through a query, and the query comes before the header.
    if (!authorization.empty()) {
        std::string const query = "/cable?x=" + escape(target) + "&token=" + escape(authorization);
        check(find_token(query, authorization) == std::string(authorization));
        check(find_token(query + "&token=last", {}) == "last");
    }
    if (token && token->find_first_of(" \t") == std::string::npos) {
        check(find_token("/cable", "bEARER  " + *token) == token);
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto rest = text_of(data, size);
    auto const origin = take_line(rest);
    auto const host = take_line(rest);
    auto const entry = take_line(rest);
    auto const offered = take_line(rest);
    auto const target = take_line(rest);
    check_origin(origin, host, entry);
    check_subprotocol(offered);
    check_token(target, take_line(rest));
    return 0;
}
