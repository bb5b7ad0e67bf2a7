// What `presenced doctor` asks of the database. Blocking, two connections.
#pragma once

#include "db/session/judgement.hpp"

#include <string>
#include <vector>

namespace presenced::db {

// Every problem that a node with this connection string would have, errors first; none when
// presence is true. Beyond the judgement of a node it opens a second session beside the first,
// which a pooler in the wrong mode gives away, and writes one row into the attendance log and takes
// it back. Throws unreachable_error, and schema_error for a connection string that libpq refuses.
std::vector<problem> examine(std::string const& conninfo);

} // namespace presenced::db
