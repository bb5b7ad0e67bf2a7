#include "db/admin/schema.hpp"

#include "db/session/command_session.hpp"
#include "db/session/judgement.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <sstream>
#include <utility>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

std::string show(milliseconds d) {
    auto const n = d.count();
    return n % 1000 == 0 ? std::to_string(n / 1000) + "s" : std::to_string(n) + "ms";
}

// Where new tables go; empty when search_path names no schema that exists.
std::string current_schema(pqxx::work& tx) {
    auto const r = tx.exec("SELECT coalesce(current_schema(), '')");
    return r[0][0].c_str();
}

// Which schema holds the table that this name means to this role; empty when there is none.
std::string schema_of(pqxx::work& tx, std::string const& table) {
    auto const r = tx.exec("SELECT n.nspname FROM pg_class c "
                           "JOIN pg_namespace n ON n.oid = c.relnamespace "
                           "WHERE c.oid = to_regclass(" +
                           tx.quote(table) + ")");
    return r.empty() ? std::string{} : r[0][0].c_str();
}

std::vector<applied_migration> read_applied(pqxx::work& tx) {
    auto const schema = schema_of(tx, "presenced_migrations");
    if (schema.empty()) {
        return {};
    }
    auto const columns = tx.exec(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('presenced_migrations') "
        "AND attname IN ('number', 'name', 'oldest_binary') AND NOT attisdropped");
    if (columns[0][0].as<int>() != 3) {
        throw schema_error{schema + ".presenced_migrations is there and presenced did not make it; "
                                    "use another database or another schema (search_path)"};
    }
    std::vector<applied_migration> applied;
    for (auto const& line : tx.exec("SELECT number, name, oldest_binary FROM presenced_migrations "
                                    "ORDER BY number")) {
        applied.push_back({line[0].as<int>(), line[1].c_str(), line[2].c_str()});
    }
    return applied;
}

void check_history(std::vector<applied_migration> const& applied) {
    if (auto const why = strange_history(applied, built_version())) {
        throw schema_error{*why};
    }
}

milliseconds read_stale_after(pqxx::work& tx) {
    if (schema_of(tx, "presence_clock").empty()) {
        throw schema_error{"presenced_migrations says that the schema is there, and table "
                           "presence_clock is not: restore it from a backup, or put its schema "
                           "into search_path"};
    }
    auto const r =
        tx.exec("SELECT (extract(epoch FROM stale_after) * 1000)::bigint FROM presence_clock");
    if (r.empty()) {
        throw schema_error{"presence_clock is empty, and has one row where presenced made it; "
                           "restore it: INSERT INTO presence_clock (stale_after) "
                           "VALUES ('45 seconds')"};
    }
    return milliseconds{r[0][0].as<std::int64_t>()};
}

// The tables and views that a migration creates, each at the beginning of a line; those that it may
// replace as well, when asked for.
std::vector<std::string> created_by(migration const& m, bool or_replaced = false) {
    std::vector<std::string> names;
    std::istringstream lines{std::string{m.sql}};
    for (std::string line; std::getline(lines, line);) {
        std::string const replace = "CREATE OR REPLACE ";
        if (or_replaced && line.starts_with(replace)) {
            line.replace(0, replace.size(), "CREATE ");
        }
        std::istringstream words{line};
        std::string create, kind, name;
        if (line.starts_with("CREATE ") && words >> create >> kind >> name &&
            (kind == "TABLE" || kind == "VIEW")) {
            names.push_back(name.substr(0, name.find('(')));
        }
    }
    return names;
}

// `CREATE TABLE IF NOT EXISTS` would take a stranger's table for ours, and a bare CREATE TABLE
// fails on it without saying what to do.
// The first migration answers for the names of them all: a later one may replace what an earlier
// one made, and could not tell that from a stranger's.
void refuse_strangers(pqxx::work& tx, migration const& m, std::string const& schema) {
    bool const is_first = m.number == migrations().front().number;
    std::vector<std::string> names = created_by(m);
    if (is_first) {
        for (auto const& later : migrations()) {
            auto const more = created_by(later, true);
            names.insert(names.end(), more.begin(), more.end());
        }
    }
    for (auto const& name : names) {
        auto const found = tx.exec("SELECT FROM pg_class WHERE relname = " + tx.quote(name) +
                                   " AND relnamespace = current_schema()::regnamespace");
        if (!found.empty()) {
            throw schema_error{schema + "." + name +
                               " is there and presenced did not make it; use another database, or "
                               "another schema by way of search_path: "
                               "ALTER ROLE ... SET search_path = presenced"};
        }
    }
}

void prepare_first(pqxx::work& tx, std::string const& schema) {
    auto const home = schema_of(tx, "presenced_migrations");
    if (!home.empty() && home != schema) {
        throw schema_error{"presenced's tables are in schema " + home +
                           ", and new ones would go to " + schema + ": put " + home +
                           " first in search_path"};
    }
    auto const may = tx.exec("SELECT has_schema_privilege(current_schema(), 'CREATE'), "
                             "current_user");
    if (!may[0][0].as<bool>()) {
        throw schema_error{std::string{"role "} + may[0][1].c_str() +
                           " may not create tables in schema " + schema +
                           ": migrate as the schema's owner, or GRANT CREATE ON SCHEMA " + schema +
                           " TO " + may[0][1].c_str()};
    }
    if (home.empty()) {
        tx.exec("CREATE TABLE presenced_migrations ("
                "number integer PRIMARY KEY, "
                "name text NOT NULL, "
                "oldest_binary text NOT NULL, "
                "applied_at timestamptz NOT NULL DEFAULT clock_timestamp())");
    }
}

// Clients send UTF-8. What another encoding has no characters for could not be stored.
void refuse_other_encoding(pqxx::work& tx) {
    auto const there = tx.exec("SELECT current_database(), getdatabaseencoding()");
    if (std::string_view{there[0][1].c_str()} != "UTF8") {
        throw schema_error{std::string{"database "} + there[0][0].c_str() + " has the encoding " +
                           there[0][1].c_str() +
                           ", and presenced needs UTF8: CREATE DATABASE ... ENCODING 'UTF8' "
                           "TEMPLATE template0"};
    }
}

// One migration at a time. Whoever comes second waits here, and then finds the work done.
void lock_migrations(pqxx::work& tx) {
    auto const writable = tx.exec("SHOW transaction_read_only");
    if (std::string_view{writable[0][0].c_str()} == "on") {
        throw schema_error{"the database is read-only, a standby perhaps: migrate on the primary "
                           "(several hosts and target_session_attrs=read-write find it)"};
    }
    if (current_schema(tx).empty()) {
        auto const path = tx.exec("SHOW search_path");
        throw schema_error{std::string{"search_path is "} + path[0][0].c_str() +
                           ", and no such schema exists: create it (CREATE SCHEMA ...)"};
    }
    tx.exec("SET LOCAL lock_timeout = '30s'");
    tx.exec("SELECT pg_advisory_xact_lock("
            "hashtextextended('presenced migrate ' || current_schema(), 0))");
    tx.exec("SET LOCAL lock_timeout = '5s'");
}

// Applies the next migration; its name, or nothing when all are.
std::optional<std::string> apply_next(command_session& session) {
    return session.transaction([](pqxx::work& tx) -> std::optional<std::string> {
        lock_migrations(tx);
        auto const applied = read_applied(tx);
        check_history(applied);
        if (applied.size() >= migrations().size()) {
            return std::nullopt;
        }
        if (applied.empty()) {
            refuse_other_encoding(tx);
        }
        auto const& next = migrations()[applied.size()];
        auto const schema = current_schema(tx);
        refuse_strangers(tx, next, schema);
        prepare_first(tx, schema);
        std::string const name{next.name};
        try {
            tx.exec(std::string{next.sql});
        } catch (pqxx::broken_connection const&) {
            throw;
        } catch (pqxx::sql_error const& e) {
            std::string const text = e.what();
            auto cure = e.sqlstate() == "55P03"
                            ? std::string{"; another session holds a lock on it (pg_stat_activity "
                                          "shows who): end that and run migrate again"}
                            : std::string{};
            throw schema_error{"migration " + name + " failed and nothing of it was applied: " +
                               text.substr(0, text.find('\n')) + cure};
        }
        tx.exec("INSERT INTO presenced_migrations (number, name, oldest_binary) VALUES (" +
                std::to_string(next.number) + ", " + tx.quote(name) + ", " +
                tx.quote(std::string{next.oldest_binary}) + ")");
        return name;
    });
}

// A node goes by the value that it read when it started, so it changes only while none runs. One
// that is cut off meanwhile does not show here; it looks again before it renews anything, and ends.
void refuse_while_nodes_tick(pqxx::work& tx, milliseconds from, milliseconds to) {
    auto const ticking = tx.exec(
        "SELECT coalesce((SELECT string_agg(DISTINCT node, ', ') FROM nodes "
        "                 WHERE ticked_at > clock_timestamp() - (c.judge_until - c.ticked_at)), "
        "                'some node'), "
        "       ceil(extract(epoch FROM c.judge_until - c.ticked_at))::bigint "
        "FROM presence_clock c WHERE clock_timestamp() < c.judge_until "
        "AND clock_timestamp() > c.ticked_at - interval '1 minute'");
    if (!ticking.empty()) {
        throw schema_error{"stale_after cannot change from " + show(from) + " to " + show(to) +
                           " while nodes run (" + ticking[0][0].c_str() +
                           "): stop them all, wait " + ticking[0][1].c_str() +
                           "s and run migrate again"};
    }
}

milliseconds record_stale_after(command_session& session, std::optional<milliseconds> wanted) {
    return session.transaction([&](pqxx::work& tx) {
        auto const recorded = read_stale_after(tx);
        if (!wanted || *wanted == recorded) {
            return recorded;
        }
        lock_migrations(tx);
        tx.exec("SELECT FROM presence_clock FOR UPDATE"); // no tick lands from here on
        refuse_while_nodes_tick(tx, recorded, *wanted);
        tx.exec("UPDATE presence_clock SET stale_after = interval '1 millisecond' * " +
                std::to_string(wanted->count()));
        return *wanted;
    });
}

} // namespace

int check_migrations(pqxx::work& tx, std::string_view binary_version) {
    auto const applied = read_applied(tx);
    if (applied.empty()) {
        auto const at = tx.exec("SELECT current_database(), current_setting('search_path')");
        throw schema_error{std::string{"database "} + at[0][0].c_str() +
                           " has no tables of presenced (search_path " + at[0][1].c_str() +
                           "): run `presenced migrate`"};
    }
    if (auto const why = misfit(applied, binary_version)) {
        throw schema_error{*why};
    }
    return applied.back().number;
}

migrate_report migrate(std::string const& conninfo, std::optional<milliseconds> stale_after) {
    command_session session{conninfo};
    migrate_report report;
    while (auto name = apply_next(session)) {
        report.applied.push_back(std::move(*name));
    }
    report.stale_after = record_stale_after(session, stale_after);
    command_session after{conninfo}; // whose search_path begins with the schema that is there now
    auto const ask = [&](std::string const& sql) {
        return after.ask(sql);
    };
    report.mended = mend_sequences(ask, after.self().home);
    for (auto const& p : judge(ask, after.self(), built_version(), false).problems) {
        if (p.how_bad == problem::weight::warning) {
            report.warnings.push_back(p.what + ": " + p.cure);
        }
    }
    return report;
}

schema_facts check_schema(std::string const& conninfo, std::string_view binary_version) {
    command_session session{conninfo};
    return session.transaction([&](pqxx::work& tx) {
        auto const version = check_migrations(tx, binary_version);
        return schema_facts{version, read_stale_after(tx)};
    });
}

} // namespace presenced::db
