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

// Where a page comes from, taken apart. Without a host: a file.
struct page_origin {
    std::string_view scheme;
    authority where;
};

constexpr std::string_view scheme_mark = "://";
constexpr std::string_view file_scheme = "file";

// RFC 3986 section 3.1.
bool is_scheme(std::string_view text) noexcept {
    auto const is_letter = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    };
    return !text.empty() && is_letter(text.front()) &&
           std::all_of(text.begin(), text.end(), [&](char c) {
               return is_letter(c) || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
           });
}

// `scheme://authority` and whatever follows; `file://` needs no authority.
std::optional<page_origin> parse_origin(std::string_view text) noexcept {
    auto const scheme_end = text.find(scheme_mark);
    if (scheme_end == std::string_view::npos || !is_scheme(text.substr(0, scheme_end))) {
        return std::nullopt;
    }
    auto const scheme = text.substr(0, scheme_end);
    std::string_view const rest = text.substr(scheme_end + scheme_mark.size());
    auto const host = rest.substr(0, rest.find_first_of("/?#"));
    if (host.empty() && base::equal_ignoring_case(scheme, file_scheme)) {
        return page_origin{scheme, {}};
    }
    auto const where = parse_authority(host);
    return where ? std::optional{page_origin{scheme, *where}} : std::nullopt;
}

constexpr std::string_view any_origin = "*";
constexpr std::string_view no_origin = "null";
constexpr std::string_view wildcard = "*.";

// An entry of the list that names hosts, taken apart.
struct pattern {
    std::string_view scheme; // empty: any
    authority listed;        // without a host: files
    bool any_below = false;  // the host began with `*.`
};

std::optional<pattern> parse_pattern(std::string_view text) noexcept {
    pattern found;
    if (auto const scheme_end = text.find(scheme_mark); scheme_end != std::string_view::npos) {
        found.scheme = text.substr(0, scheme_end);
        text.remove_prefix(scheme_end + scheme_mark.size());
        if (!is_scheme(found.scheme)) {
            return std::nullopt;
        }
        if (text.empty() && base::equal_ignoring_case(found.scheme, file_scheme)) {
            return found;
        }
    }
    found.any_below = text.starts_with(wildcard);
    auto const listed = parse_authority(text.substr(found.any_below ? wildcard.size() : 0));
    if (!listed || listed->host.front() == '.' || text.ends_with(':') ||
        (found.any_below && listed->host.front() == '[')) {
        return std::nullopt;
    }
    found.listed = *listed;
    return found;
}

bool matches_host(pattern const& wanted, authority const& origin) noexcept {
    if (!wanted.any_below) {
        return same(wanted.listed, origin);
    }
    // Something, a dot, and then the listed host.
    std::string_view const below = wanted.listed.host;
    return wanted.listed.port == origin.port && origin.host.size() > below.size() + 1 &&
           origin.host[origin.host.size() - below.size() - 1] == '.' &&
           base::equal_ignoring_case(origin.host.substr(origin.host.size() - below.size()), below);
}

bool matches(std::string_view entry, page_origin const& page) noexcept {
    if (entry == any_origin) {
        return true;
    }
    auto const wanted = parse_pattern(entry);
    return wanted &&
           (wanted->scheme.empty() || base::equal_ignoring_case(wanted->scheme, page.scheme)) &&
           matches_host(*wanted, page.where);
}

} // namespace

bool is_origin_allowed(std::optional<std::string_view> origin, std::string_view host,
                       std::span<std::string const> allowed) {
    if (!origin) {
        return true;
    }
    std::string_view const sent = base::trim(*origin, base::blanks);
    if (sent == no_origin) {
        return std::any_of(allowed.begin(), allowed.end(), [](std::string const& entry) {
            return entry == no_origin || entry == any_origin;
        });
    }
    auto const page = parse_origin(sent);
    if (!page) {
        return false;
    }
    auto const requested = parse_authority(base::trim(host, base::blanks));
    if (requested && same(page->where, *requested)) {
        return true;
    }
    return std::any_of(allowed.begin(), allowed.end(),
                       [&](std::string const& entry) { return matches(entry, *page); });
}

bool is_origin_pattern(std::string_view text) {
    return text == any_origin || text == no_origin || parse_pattern(text).has_value();
}

std::optional<std::string> pattern_for_origin(std::string_view origin) {
    constexpr std::size_t longest = 300; // a host name has 253 characters at most
    std::string_view sent = base::trim(origin, base::blanks);
    if (sent == no_origin) {
        return std::string{sent};
    }
    auto const page = parse_origin(sent);
    if (!page || sent.size() > longest) {
        return std::nullopt;
    }
    auto const host_at = page->scheme.size() + scheme_mark.size();
    sent = sent.substr(0, std::min(sent.find_first_of("/?#", host_at), sent.size()));
    while (sent.ends_with(':')) { // `host:`
        sent.remove_suffix(1);
    }
    auto const entry =
        page->where.host.empty() ? base::lower(page->scheme) + "://" : std::string{sent};
    return parse_pattern(entry) ? std::optional{entry} : std::nullopt;
}

bool is_host(std::string_view text) noexcept {
    return parse_authority(text).has_value();
}

} // namespace presenced::protocol
