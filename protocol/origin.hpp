// Which web pages may connect: the check of the Origin header (RFC 6454) before the upgrade.
// It keeps other sites' pages from using a visitor's browser; it is no check of programs, which
// send what they like. Pure functions, any thread.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace presenced::protocol {

// Whether an upgrade with this Origin may go on.
//   origin   the header's value, nothing when it was not sent: programs send none, browsers always
//   host     the Host of the request, as the client named it (behind a trusted proxy: the
//            forwarded one); may be empty
//   allowed  the configured list
// Yes if no Origin was sent, if its host and port are the request's, or if the list has them. Names
// compare without regard to case. Scheme and path do not count, for a proxy may end TLS and some
// clients send `http://host/`; so ports 80, 443 and none are all the default port and equal.
// `null` (a sandboxed page, a file) and `file://` (a desktop shell) are allowed only where the list
// names them, and what is no origin at all is refused.
bool is_origin_allowed(std::optional<std::string_view> origin, std::string_view host,
                       std::span<std::string const> allowed);

// Whether text can stand in the list:
//   host, host:port      IPv6 addresses in brackets; without a port it means the default port
//   *.host, *.host:port  every host below it, at any depth, and not host itself
//   scheme://...         one of those above, and pages of that scheme only
//   null, file://        what browsers and desktop shells send for pages without a host
//   *                    every page
// No path, and no user name.
bool is_origin_pattern(std::string_view text);

// What the list would have to hold for pages of this origin and no others to be allowed: the origin
// without its path. Nothing when no entry could allow it.
std::optional<std::string> pattern_for_origin(std::string_view origin);

// Whether text is `host` or `host:port`, as a Host field has it (RFC 9110 section 7.2).
bool is_host(std::string_view text) noexcept;

} // namespace presenced::protocol
