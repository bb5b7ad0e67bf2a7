// Where a request carries its access token.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace presenced::protocol {

// The token of an upgrade request: `token` in the query, or `Authorization: Bearer` when the query
// has none. Nothing when there is neither, or only an empty one.
//   target         the request target, e.g. `/cable?token=abc`
//   authorization  the header's value, empty when it was not sent
// The query is read as a form (RFC 3986 escapes, `+` is a space; of a repeated key the last one
// counts), as Rack does, so a `+` in a token must be sent as `%2B`. An escape that is none stands
// for itself. The token may hold any byte: hash it, do not log it.
std::optional<std::string> find_token(std::string_view target, std::string_view authorization);

} // namespace presenced::protocol
