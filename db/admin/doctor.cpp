#include "db/admin/doctor.hpp"

#include "db/session/command_session.hpp"
#include "db/session/conninfo.hpp"
#include "db/session/sqlstate.hpp"

#include <optional>

namespace presenced::db {

namespace {

// Nothing but its identity column's sequence says which id comes next, and the documented role of a
// node may not read it. So a row is written, and taken back.
std::optional<problem> try_log(command_session& session) {
    auto const& home = session.self().home;
    auto const may = session.ask(
        "SELECT pg_catalog.has_table_privilege(t.name, 'INSERT'), "
        "pg_catalog.has_sequence_privilege(pg_catalog.pg_get_serial_sequence(t.name, 'id'), "
        "'SELECT') FROM (SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name "
        "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.oid = pg_catalog.to_regclass('routing_transitions')) t");
    if (may.empty() || may[0][0] != "t" || may[0][1] == "t") {
        return std::nullopt;
    }
    try {
        session.ask("BEGIN; INSERT INTO routing_transitions (agent_id, active, reason) "
                    "VALUES (0, false, 'reconciled'); ROLLBACK");
        return std::nullopt;
    } catch (std::runtime_error const&) {
        auto const error = session.newest_error();
        if (error.sqlstate.empty()) {
            throw;
        }
        session.ask("ROLLBACK");
        if (error.sqlstate == sqlstate::unique_violation && error.table == "routing_transitions") {
            return problem{problem::weight::error,
                           "the sequence of " + home +
                               ".routing_transitions is behind its rows: new rows get ids that are "
                               "there already",
                           "presenced migrate, as the owner"};
        }
        return problem{problem::weight::error,
                       "a flip cannot be logged in " + home +
                           ".routing_transitions: " + in_one_line(error.message),
                       "remove the constraint or trigger that refuses it"};
    }
}

} // namespace

std::vector<problem> examine(std::string const& conninfo) {
    if (auto const wrong = conninfo_problem(conninfo)) {
        throw schema_error{*wrong};
    }
    std::optional<command_session> first;
    std::optional<command_session> second;
    try {
        first.emplace(conninfo);
        // Beside the first, which is idle: a pooler in the wrong mode gives the same backend.
        second.emplace(conninfo);
    } catch (schema_error const& e) {
        return {problem{problem::weight::error, e.what(), ""}};
    }
    auto verdict = judge([&](std::string const& sql) { return first->ask(sql); }, first->self(),
                         built_version(), false);
    if (!verdict.has_errors()) {
        if (auto const refused = try_log(*first)) {
            verdict.problems.insert(verdict.problems.begin(), *refused);
        }
    }
    return std::move(verdict.problems);
}

} // namespace presenced::db
