// Whether the database lets presenced do its whole work: every table it writes, by the role it
// has, in the schema it means. One judgement for `serve` (at start, on every new connection, every
// sweep) and for `doctor`. Asks the catalogue: it takes no lock, but for the sequences' tables.
#pragma once

#include "db/session/migrations.hpp"
#include "db/session/rows.hpp"

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace presenced::db {

// What a session is told about itself when it is opened; see db/session/session.hpp.
struct session_identity;

// Runs one SELECT. Throws something derived from std::exception when PostgreSQL refuses it.
using ask_function = std::function<rows(std::string const& sql)>;

struct problem {
    enum class weight : std::uint8_t {
        warning, // presence is true; something works less well than it should
        error,   // presence is not true: the node is not ready
    };
    weight how_bad;
    std::string what; // names the object and the role
    std::string cure; // what to run, or to do
};

struct judgement {
    std::vector<problem> problems; // errors first
    std::vector<applied_migration> applied;
    std::optional<std::chrono::milliseconds> stale_after; // as recorded
    std::vector<std::string> mended;                      // sequences that the judgement put right

    bool has_errors() const;
    // The errors in one line, with their cures; empty when there is none.
    std::string reason() const;
};

// With `mend`, a sequence behind its rows is put right where the role may do so. Throws what `ask`
// throws when the judgement could not be made: a lock, a lost connection.
judgement judge(ask_function const& ask, session_identity const& self,
                std::string_view binary_version, bool mend);

// Sets sequences that are behind their rows to the largest id; returns their names.
std::vector<std::string> mend_sequences(ask_function const& ask, std::string const& home);

} // namespace presenced::db
