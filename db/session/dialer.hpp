// Connects to PostgreSQL within bounds that libpq alone does not keep: an address at a time, each
// with a limit of its own, and given up as soon as the node is told to stop. Resolving names is
// what stays unbounded. For .cpp files of db/ only: it shows libpq.
#pragma once

#include "db/session/stop_signal.hpp"

#include <libpq-fe.h>

#include <memory>
#include <string>

namespace presenced::db {

struct raw_closer {
    void operator()(PGconn* link) const { PQfinish(link); }
};
using raw_link = std::unique_ptr<PGconn, raw_closer>;

// Tries every address of every host, in order, as libpq would; each for connect_timeout (never for
// more than 30 s) altogether. Names are looked up before that, for as long as the system's resolver
// takes (resolv.conf(5), timeout and attempts); neither the limit nor a stop cuts that short.
// Throws std::runtime_error with what the last of them said.
raw_link dial(std::string const& conninfo, stop_signal& stop);

} // namespace presenced::db
