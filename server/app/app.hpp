// One presenced process, from start to exit: wiring, and the order of starting and stopping.
#pragma once

#include "db/admin/schema.hpp"
#include "db/store/postgres_store.hpp"
#include "server/node/config.hpp"

#include <functional>
#include <memory>
#include <string>

namespace presenced::server {

// Where presence is kept: PostgreSQL, unless a benchmark wants to know what the rest costs.
struct store_source {
    // What db::check_schema() says, and throws; called again while the database is unreachable.
    std::function<db::schema_facts(std::string const& conninfo)> check_schema;
    std::function<std::unique_ptr<db::store>(db::postgres_options, db::observer&)> open;
};
store_source postgres();

// Serves until SIGTERM or SIGINT. Returns the exit code:
//   0  drained: every client was told, every lease released
//   1  could not start, or gave up draining (deadline, second signal) with leases left to run out
//   2  the settings do not fit what the database has recorded
int serve(config const& settings, store_source const& from = postgres());

} // namespace presenced::server
