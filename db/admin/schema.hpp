// The schema's migrations, embedded in the binary, and whether this binary can run on what is
// there. Blocking; call from a thread that may wait.
#pragma once

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

struct migration {
    int number;
    std::string_view name; // "0001_presence"
    std::string_view sql;
    std::string_view oldest_binary; // oldest presenced that can run once this is applied
};

// As presenced_migrations has it.
struct applied_migration {
    int number;
    std::string name;
    std::string oldest_binary;
};

// Why presenced of this version cannot run on a schema to which these were applied, in order, with
// the cure; nothing when it can.
std::optional<std::string> misfit(std::vector<applied_migration> const& applied,
                                  std::string_view binary_version);

// In order; generated from migrations/ at build time.
std::vector<migration> const& migrations();

// The version of this build of presenced: "0.1.0".
std::string_view built_version();

// A problem that the operator must solve; what() is one line that names the thing and the cure.
class schema_error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The database cannot be reached, or not just now (as opposed to: was reached and is not fit).
// Trying again may help.
class unreachable_error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

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
