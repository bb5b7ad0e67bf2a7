#include "protocol/origin.hpp"

#include "base/text.hpp"

#include <algorithm>
#include <charconv>
#include <cstdint>

namespace presenced::protocol {
namespace {

bool is_name_char(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '.' || c == '_' || c == '~' ||
           c == '%'; // RFC 3986 section 3.2.2, less what no host name has
}

bool is_address_char(char c) noexcept {
    return (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F') || (c >= '0' && c <= '9') || c == ':' ||
           c == '.';
}

constexpr std::uint16_t default_port = 0; // stands for 80, 443 and none

struct authority {
    std::string_view host; // an IPv6 address with its brackets
    std::uint16_t port = default_port;
};

bool same(authority const& a, authority const& b) noexcept {
    return a.port == b.port && base::equal_ignoring_case(a.host, b.host);
}

std::optional<std::uint16_t> parse_port(std::string_view text) noexcept {
    if (text.empty()) {
        return default_port; // `host:` (RFC 3986 section 3.2.3)
    }
    std::uint16_t port = 0;
    auto const parsed = std::from_chars(text.data(), text.data() + text.size(), port);
    if (parsed.ec != std::errc{} || parsed.ptr != text.data() + text.size() || port == 0) {
        return std::nullopt;
    }
    return port == 80 || port == 443 ? default_port : port;
}

// `host`, `host:port`, `[address]`, `[address]:port`; nothing for anything else, user names too.
std::optional<authority> parse_authority(std::string_view text) noexcept {
    bool const bracketed = text.starts_with('[');
    std::size_t host_end = 0;
    if (bracketed) {
        auto const close = text.find(']');
        if (close == std::string_view::npos || close < 3 ||
            !std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(close),
                         is_address_char)) {
            return std::nullopt;
        }
        host_end = close + 1;
    } else {
        host_end = std::min(text.find(':'), text.size());
        if (host_end == 0 ||
            !std::all_of(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(host_end),
                         is_name_char)) {
            return std::nullopt;
        }
    }
    authority found{text.substr(0, host_end), default_port};
    std::string_view const rest = text.substr(host_end);
    if (rest.empty()) {
        return found;
    }
    if (rest.front() != ':') {
        return std::nullopt;
    }
    auto const port = parse_port(rest.substr(1));
    if (!port) {
        return std::nullopt;
    }
    found.port = *port;
    return found;
}

// `scheme://authority` and whatever follows.
std::optional<authority> parse_origin(std::string_view text) noexcept {
    auto const scheme_end = text.find("://");
    if (scheme_end == std::string_view::npos || scheme_end == 0) {
        return std::nullopt;
    }
    std::string_view const rest = text.substr(scheme_end + 3);
    return parse_authority(rest.substr(0, rest.find_first_of("/?#")));
}

constexpr std::string_view wildcard = "*.";

// An entry of the list, taken apart.
struct pattern {
    authority listed;
    bool any_below = false; // began with `*.`
};

std::optional<pattern> parse_pattern(std::string_view text) noexcept {
    bool const any_below = text.starts_with(wildcard);
    auto const listed = parse_authority(text.substr(any_below ? wildcard.size() : 0));
    if (!listed || listed->host.front() == '.' || text.ends_with(':') ||
        (any_below && listed->host.front() == '[')) {
        return std::nullopt;
    }
    return pattern{*listed, any_below};
}

bool matches(std::string_view entry, authority const& origin) noexcept {
    auto const wanted = parse_pattern(entry);
    if (!wanted || !wanted->any_below) {
        return wanted && same(wanted->listed, origin);
    }
    // Something, a dot, and then the listed host.
    std::string_view const below = wanted->listed.host;
    return wanted->listed.port == origin.port && origin.host.size() > below.size() + 1 &&
           origin.host[origin.host.size() - below.size() - 1] == '.' &&
           base::equal_ignoring_case(origin.host.substr(origin.host.size() - below.size()), below);
}

} // namespace

bool is_origin_allowed(std::optional<std::string_view> origin, std::string_view host,
                       std::span<std::string const> allowed) {
    if (!origin) {
        return true;
    }
    std::string_view const sent = base::trim(*origin, base::blanks);
    if (sent == "null") {
        return std::find(allowed.begin(), allowed.end(), "null") != allowed.end();
    }
    auto const page = parse_origin(sent);
    if (!page) {
        return false;
    }
    auto const requested = parse_authority(base::trim(host, base::blanks));
    if (requested && same(*page, *requested)) {
        return true;
    }
    return std::any_of(allowed.begin(), allowed.end(),
                       [&](std::string const& pattern) { return matches(pattern, *page); });
}

bool is_origin_pattern(std::string_view text) {
    return parse_pattern(text).has_value();
}

} // namespace presenced::protocol
