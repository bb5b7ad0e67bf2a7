// The roles of docs/operations.md, taken from there, so that the page cannot say less than what a
// server needs.
#pragma once

#include <string>
#include <vector>

namespace presenced::tests {

// The SQL of the chapter on roles and grants, block by block, statement by statement.
std::vector<std::vector<std::string>> documented_roles();

// The same database as the role that is documented for the server, with its grants. A connection
// string that is not the superuser's stays as it is.
std::string as_server(std::string const& conninfo);
std::string as_reader(std::string const& conninfo);

} // namespace presenced::tests
