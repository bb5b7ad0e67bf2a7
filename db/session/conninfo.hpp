// Text that goes to libpq and comes from it: connection strings, before they are tried for ever,
// and messages, before they are shown.
// https://www.postgresql.org/docs/current/libpq-connect.html. Thread-safe.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

// What libpq does not understand in a connection string or would refuse at every try, with the cure
// (Rails' `pool`, a port of 99999); nothing when it is fine. Never contains the password, nor what
// may be a part of it.
std::optional<std::string> conninfo_problem(std::string const& conninfo);

// The same of the variables (PGSSLMODE) from which libpq takes what the string leaves open.
std::optional<std::string>
environment_problem(std::string const& conninfo,
                    std::map<std::string, std::string> const& environment);

// A message of libpq or PostgreSQL, which has hints and contexts on further lines, as one line that
// fits into quotes: "x" becomes 'x'.
std::string in_one_line(std::string_view message);

// The same with *** for each of the secrets.
std::string without_secrets(std::string message, std::vector<std::string> const& secrets);

} // namespace presenced::db
