// Brings the schema up to date, and asks what there is. Blocking; call from a thread that may wait.
#pragma once

#include "db/session/errors.hpp"
#include "db/session/migrations.hpp"

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

struct migrate_report {
    std::vector<std::string> applied;  // names, empty when there was nothing to do
    std::vector<std::string> mended;   // sequences that were behind the rows of their tables
    std::vector<std::string> warnings; // what this role would meet, in one line each
    std::chrono::milliseconds stale_after;
};

// Applies what is missing, each migration once and in a transaction of its own, under an advisory
// lock and a lock_timeout. Records `stale_after` when given; refuses a change while nodes tick.
// Throws schema_error (a table that it did not make, a newer schema, ...) or unreachable_error.
migrate_report migrate(std::string const& conninfo,
                       std::optional<std::chrono::milliseconds> stale_after);

struct schema_facts {
    int version;
    std::chrono::milliseconds stale_after;
};

// What `serve` asks before it starts. Throws schema_error when this binary cannot run on the
// schema (none, too old, too new, PostgreSQL older than 15), unreachable_error when nobody answers.
schema_facts check_schema(std::string const& conninfo, std::string_view binary_version);

} // namespace presenced::db
