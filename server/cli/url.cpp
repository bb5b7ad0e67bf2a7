#include "server/cli/url.hpp"

#include <algorithm>
#include <charconv>

namespace presenced::server {

std::string url::show() const {
    return scheme + "://" + to_string(endpoint{host, port}) + target;
}

url parse_url(std::string_view text, std::vector<std::string_view> const& schemes,
              std::string_view default_target, std::string_view setting) {
    auto const refuse = [&] {
        std::string allowed;
        for (auto const scheme : schemes) {
            allowed.append(allowed.empty() ? "" : " or ").append(scheme);
            allowed.append("://HOST:PORT").append(default_target);
        }
        return bad_setting{std::string{setting} + " is '" + std::string{text} +
                           "'; allowed: " + allowed +
                           (text.starts_with("wss:") || text.starts_with("https:")
                                ? " (presenced speaks no TLS itself; connect behind the proxy)"
                                : "")};
    };
    auto const colon = text.find("://");
    url parsed{};
    parsed.scheme = text.substr(0, colon);
    if (colon == text.npos ||
        std::find(schemes.begin(), schemes.end(), parsed.scheme) == schemes.end()) {
        throw refuse();
    }
    auto const rest = text.substr(colon + 3);
    auto const end = std::min(rest.find_first_of("/?"), rest.size());
    auto host = rest.substr(0, end);
    parsed.target = rest.substr(end);
    if (parsed.target.empty() || parsed.target == "/") {
        parsed.target = default_target;
    } else if (parsed.target.front() == '?') {
        parsed.target = std::string{default_target} + parsed.target;
    }
    parsed.port = 80;
    auto const bracket = host.rfind(']');
    if (auto const at = host.rfind(':');
        at != host.npos && (bracket == host.npos || at > bracket)) {
        auto const digits = host.substr(at + 1);
        auto const [stop, error] =
            std::from_chars(digits.data(), digits.data() + digits.size(), parsed.port);
        if (error != std::errc{} || stop != digits.data() + digits.size() || parsed.port == 0) {
            throw refuse();
        }
        host = host.substr(0, at);
    }
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
        host = host.substr(1, host.size() - 2);
    }
    auto const odd = [](char c) {
        return c <= ' ' || c == '@' || c == 0x7f || c == '#';
    };
    if (host.empty() || std::any_of(host.begin(), host.end(), odd) ||
        std::any_of(parsed.target.begin(), parsed.target.end(),
                    [](char c) { return c <= ' ' || c == 0x7f || c == '#'; })) {
        throw refuse();
    }
    parsed.host = host;
    return parsed;
}

std::vector<endpoint> reachable_at(std::vector<endpoint> const& listen) {
    std::vector<endpoint> reachable;
    for (auto const& e : listen) {
        if (e.port == 0) {
            throw bad_setting{"PRESENCED_LISTEN is '" + to_string(e) +
                              "', which leaves the port to the system; allowed: the address that "
                              "the server logs, as a URL"};
        }
        if (e.address == "0.0.0.0") {
            reachable.push_back({"127.0.0.1", e.port});
        } else if (e.address == "::") {
            // Such a socket may take IPv4 or not (IPV6_V6ONLY).
            reachable.push_back({"::1", e.port});
            reachable.push_back({"127.0.0.1", e.port});
        } else {
            reachable.push_back(e);
        }
    }
    return reachable;
}

} // namespace presenced::server
