#include "db/session/judgement.hpp"

#include "db/session/session.hpp"

#include <algorithm>
#include <charconv>
#include <set>
#include <span>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

// What the node does with each table. Columns without a comma list: any column will do (a row
// lock), or the whole table (DELETE).
struct needed_right {
    char const* table;
    char const* privilege;
    char const* columns; // separated by commas
};
// It says which of the others there are, and is asked for before them.
constexpr needed_right needed_of_history[] = {
    {"presenced_migrations", "SELECT", "number,name,oldest_binary"},
};
// A row that a function takes whole (presence_clock, sweep_state) needs SELECT on all its columns.
constexpr needed_right needed[] = {
    {"access_tokens", "SELECT", "id,token_sha256,owner_id,expires_at,revoked_at,role,agents"},
    {"agents", "SELECT", "id,owner_id,routing_active,flips_paid_until"},
    {"agents", "UPDATE", "routing_active,routing_changed_at,flips_paid_until"},
    {"agent_subscriptions", "SELECT", "agent_id,token,last_seen_at,ctid"},
    {"agent_subscriptions", "INSERT", "agent_id,token,session_id,node,last_seen_at,created_at"},
    {"agent_subscriptions", "UPDATE", "last_seen_at"},
    {"agent_subscriptions", "DELETE", ""},
    {"routing_transitions", "SELECT", "id,at"},
    {"routing_transitions", "INSERT", "agent_id,active,reason,at"},
    {"routing_transitions", "UPDATE", ""},
    {"routing_transitions", "DELETE", ""},
    {"nodes", "SELECT", "node,boot_id,ticked_at,swept_at,vouched"},
    {"nodes", "INSERT", "node,boot_id,version,started_at,ticked_at,vouched"},
    {"nodes", "UPDATE", "ticked_at,swept_at,vouched"},
    {"nodes", "DELETE", ""},
    {"presence_clock", "SELECT",
     "one,stale_after,ticked_at,judge_until,amnesty_until,flip_every,flip_burst"},
    {"presence_clock", "UPDATE", "ticked_at,judge_until,amnesty_until"},
    {"sweep_state", "SELECT", "one,looked_at,next_page,is_urgent,walk_began,last_walk,last_agent"},
    {"sweep_state", "UPDATE", "looked_at,next_page,is_urgent,walk_began,last_walk,last_agent"},
    {"sweep_queue", "SELECT", "agent_id,due,ctid"},
    {"sweep_queue", "INSERT", "agent_id"},
    {"sweep_queue", "UPDATE", ""},
    {"sweep_queue", "DELETE", ""},
};
constexpr char const* called_functions[] = {"presenced_transition", "presenced_renew",
                                            "presenced_sweep"};
constexpr char const* builtin_functions[] = {"pg_catalog.pg_notify(text,text)",
                                             "pg_catalog.pg_try_advisory_xact_lock(bigint)"};
// Their ids come from a sequence.
constexpr char const* numbered_tables[] = {"routing_transitions", "agents", "access_tokens"};

std::string literal(std::string_view text) {
    std::string quoted = "'";
    for (char const c : text) {
        quoted += c;
        if (c == '\'') {
            quoted += c;
        }
    }
    return quoted + "'"; // standard_conforming_strings is on
}

std::string name(std::string_view text) {
    std::string quoted = "\"";
    for (char const c : text) {
        quoted += c;
        if (c == '"') {
            quoted += c;
        }
    }
    return quoted + "\"";
}

// For a person, and good SQL as well.
std::string shown(std::string const& text) {
    bool const plain =
        text.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
    return plain ? text : name(text);
}

std::string shown(std::string const& schema, std::string const& object) {
    return shown(schema) + "." + object;
}

std::string const& at(row const& line, std::size_t column) {
    static std::string const empty;
    auto const& field = line.at(column);
    return field ? *field : empty;
}

bool is_true(row const& line, std::size_t column) {
    return at(line, column) == "t";
}

std::string home_oid(std::string const& home) {
    return "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = " + literal(home) + ")";
}

class judge_of {
public:
    judge_of(ask_function const& ask, session_identity const& self, std::string_view version)
        : ask_{ask}
        , self_{self}
        , version_{version} {}

    judgement run(bool mend) {
        session();
        database();
        if (self_.home.empty()) {
            no_home();
        } else {
            namesakes();
            rights(needed_of_history);
            // Of a schema that is another version's only that is said.
            if (!is_readable("presenced_migrations") || migrations_applied()) {
                rights(needed);
                functions();
                if (is_readable("presence_clock")) {
                    clock();
                    sequences(mend);
                }
            }
        }
        std::stable_sort(found_.problems.begin(), found_.problems.end(),
                         [](auto const& a, auto const& b) { return a.how_bad > b.how_bad; });
        return std::move(found_);
    }

private:
    void error(std::string what, std::string cure) {
        found_.problems.push_back({problem::weight::error, std::move(what), std::move(cure)});
    }
    void warning(std::string what, std::string cure) {
        found_.problems.push_back({problem::weight::warning, std::move(what), std::move(cure)});
    }
    std::string role() const { return "role " + self_.role; }
    std::string our(std::string const& object) const { return shown(self_.home, object); }

    // What the session may do to itself, and what its role was given by ALTER ROLE.
    void session() {
        if (self_.started.empty()) {
            warning("role " + self_.login +
                        " cannot see its own sessions in pg_stat_activity: after a lost connection "
                        "each database thread waits up to 5 s",
                    "GRANT SELECT ON pg_catalog.pg_stat_activity TO " + shown(self_.login) +
                        "; GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_get_activity(integer) TO " +
                        shown(self_.login));
        }
        auto const may_end =
            ask_("SELECT pg_catalog.has_function_privilege(" + literal(self_.login) +
                 ", 'pg_catalog.pg_terminate_backend(integer,bigint)', 'EXECUTE')");
        if (!is_true(may_end.at(0), 0)) {
            warning("role " + self_.login +
                        " may not end its own sessions: after a lost connection each database "
                        "thread waits up to 5 s",
                    "GRANT EXECUTE ON FUNCTION pg_catalog.pg_terminate_backend(integer, bigint) "
                    "TO " +
                        shown(self_.login));
        }
        for (auto const& s : required_settings()) {
            auto const value = at(
                ask_(std::string{"SELECT pg_catalog.current_setting('"} + s.name + "')").at(0), 0);
            if (value != s.value) {
                error(std::string{s.name} + " is " + value + " for " + role() + ": " + s.why,
                      "ALTER ROLE " + shown(self_.login) + " RESET " + s.name +
                          " (or ALTER DATABASE ... RESET), and end the sessions");
            }
        }
        if (self_.read_only || self_.standby) {
            error(self_.standby ? "the server is a standby" : "the server is read-only",
                  "name the primary, or all servers, in DATABASE_URL");
        }
    }

    void database() {
        auto const encoding = at(ask_("SELECT pg_catalog.getdatabaseencoding()").at(0), 0);
        if (encoding != "UTF8") {
            warning("the database's encoding is " + encoding +
                        ", not UTF8: sessions whose id has characters that are not in it are "
                        "rejected",
                    "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0, and move the data "
                    "there");
        }
        for (auto const* f : builtin_functions) {
            auto const may = ask_(std::string{"SELECT pg_catalog.has_function_privilege('"} + f +
                                  "', 'EXECUTE')");
            if (!is_true(may.at(0), 0)) {
                error(role() + " may not execute " + f,
                      std::string{"GRANT EXECUTE ON FUNCTION "} + f + " TO " + shown(self_.role));
            }
        }
    }

    void no_home() {
        auto const elsewhere =
            ask_("SELECT n.nspname, pg_catalog.has_schema_privilege(n.oid, 'USAGE') "
                 "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n "
                 "ON n.oid = c.relnamespace WHERE c.relname = 'presenced_migrations' ORDER BY 1");
        if (elsewhere.empty()) {
            error("the database has no tables of presenced (search_path " + self_.search_path + ")",
                  "presenced migrate");
            return;
        }
        auto const schema = at(elsewhere[0], 0);
        if (!is_true(elsewhere[0], 1)) {
            error(role() + " may not use schema " + schema + ", where presenced's tables are",
                  "GRANT USAGE ON SCHEMA " + shown(schema) + " TO " + shown(self_.role));
            return;
        }
        error("search_path is " + self_.search_path + ", and presenced's tables are in schema " +
                  schema,
              "ALTER ROLE " + shown(self_.login) + " SET search_path = " + shown(schema));
    }

    // After rights() of the table.
    bool is_readable(std::string const& table) const { return !unreadable_.contains(table); }

    void rights(std::span<needed_right const> these) {
        std::string values;
        for (auto const& n : these) {
            values += std::string{values.empty() ? "(" : ", ("} + literal(n.table) + ", " +
                      literal(n.privilege) + ", " + literal(n.columns) + ")";
        }
        std::string unusable; // of this table enough is said
        for (
            auto const& line : ask_(
                "SELECT n.name, n.privilege, c.relkind, "
                "  (SELECT pg_catalog.string_agg(w.name, ', ' ORDER BY w.ord) "
                "   FROM pg_catalog.unnest(pg_catalog.string_to_array(nullif(n.columns, ''), ',')) "
                "        WITH ORDINALITY AS w (name, ord) "
                "   WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a "
                "                     WHERE a.attrelid = c.oid AND a.attname = w.name "
                "                     AND NOT a.attisdropped)), "
                "  (SELECT pg_catalog.string_agg(w.name, ', ' ORDER BY w.ord) "
                "   FROM pg_catalog.unnest(pg_catalog.string_to_array(nullif(n.columns, ''), ',')) "
                "        WITH ORDINALITY AS w (name, ord) "
                "   JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = w.name "
                "   AND NOT a.attisdropped "
                "   WHERE NOT pg_catalog.has_column_privilege(c.oid, a.attnum, n.privilege)), "
                "  CASE WHEN n.columns <> '' THEN true "
                "       WHEN n.privilege = 'UPDATE' "
                "       THEN pg_catalog.has_any_column_privilege(c.oid, n.privilege) "
                "       ELSE pg_catalog.has_table_privilege(c.oid, n.privilege) END, "
                "  pg_catalog.row_security_active(c.oid) "
                "FROM (VALUES " +
                values +
                ") AS n (name, privilege, columns) LEFT JOIN pg_catalog.pg_class c "
                "ON c.relname = n.name AND c.relnamespace = " +
                home_oid(self_.home))) {
            auto const table = at(line, 0);
            if (table == unusable) {
                continue;
            }
            auto const kind = at(line, 2);
            if (kind != "r" && kind != "p") {
                unusable = table;
                unreadable_.insert(table);
                error(kind.empty() ? "table " + our(table) + " is not there"
                                   : our(table) + " is not a table (relkind " + kind + ")",
                      "restore it from a backup");
                continue;
            }
            if (is_true(line, 6)) {
                unusable = table;
                unreadable_.insert(table);
                error("row level security on " + our(table) + " hides rows from " + role(),
                      "ALTER TABLE " + our(table) + " DISABLE ROW LEVEL SECURITY, or ALTER ROLE " +
                          shown(self_.role) + " BYPASSRLS");
                continue;
            }
            if (line.at(3)) {
                unusable = table;
                unreadable_.insert(table);
                error("table " + our(table) + " has no column " + *line[3],
                      "restore it from a backup, or run `presenced migrate`");
                continue;
            }
            if (line.at(4) || !is_true(line, 5)) {
                if (at(line, 1) == "SELECT") {
                    unreadable_.insert(table);
                }
                auto const columns = line.at(4) ? " (" + *line[4] + ")" : std::string{};
                error(role() + " lacks " + at(line, 1) + columns + " on " + our(table),
                      "GRANT " + at(line, 1) + columns + " ON " + our(table) + " TO " +
                          shown(self_.role));
            }
        }
    }

    // The functions that the node calls, and those of ours that they call.
    void functions() {
        std::string called;
        for (auto const* f : called_functions) {
            called += (called.empty() ? "" : ", ") + literal(f);
            if (ask_("SELECT FROM pg_catalog.pg_proc WHERE proname = " + literal(f) +
                     " AND pronamespace = " + home_oid(self_.home))
                    .empty()) {
                error("function " + our(f) + " is not there", "restore it from a backup");
            }
        }
        for (auto const& line :
             ask_("WITH RECURSIVE ours AS MATERIALIZED ("
                  "  SELECT p.oid, p.proname::text AS name, p.prosecdef, "
                  "         pg_catalog.pg_get_functiondef(p.oid) AS body "
                  "  FROM pg_catalog.pg_proc p WHERE p.prokind = 'f' AND p.pronamespace = " +
                  home_oid(self_.home) +
                  "  AND pg_catalog.starts_with(p.proname::text, 'presence')), "
                  "used AS ("
                  "  SELECT o.* FROM ours o WHERE o.name IN (" +
                  called +
                  ") UNION "
                  "  SELECT o.* FROM used u JOIN ours o "
                  "  ON pg_catalog.strpos(u.body, o.name || '(') > 0 WHERE NOT u.prosecdef) "
                  "SELECT pg_catalog.replace(u.oid::regprocedure::text, "
                  "                          pg_catalog.quote_ident(" +
                  literal(self_.home) +
                  ") || '.', '') FROM used u "
                  "WHERE NOT pg_catalog.has_function_privilege(u.oid, 'EXECUTE') ORDER BY 1")) {
            error(role() + " may not execute " + our(at(line, 0)),
                  "GRANT EXECUTE ON FUNCTION " + our(at(line, 0)) + " TO " + shown(self_.role));
        }
    }

    // presenced itself does not mind them; whoever reads with the same search_path does.
    void namesakes() {
        std::vector<std::string> before;
        for (auto const& schema : self_.path) {
            if (schema == self_.home) {
                break;
            }
            before.push_back(literal(schema));
        }
        if (before.empty()) {
            return;
        }
        std::string schemas;
        for (auto const& s : before) {
            schemas += (schemas.empty() ? "" : ", ") + s;
        }
        for (auto const& line :
             ask_("SELECT n.nspname, c.relname FROM pg_catalog.pg_class c "
                  "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
                  "WHERE n.nspname IN (" +
                  schemas +
                  ") AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relname IN "
                  "('agents', 'agent_subscriptions', 'access_tokens', 'routing_transitions', "
                  "'nodes', 'presence_clock', 'live_agent_subscriptions') ORDER BY 1, 2")) {
            warning(shown(at(line, 0), at(line, 1)) + " is not presenced's and stands before " +
                        our(at(line, 1)) + " in the search_path of role " + self_.login + " (" +
                        self_.search_path +
                        "): presenced uses its own, and others with this search_path do not",
                    "ALTER ROLE " + shown(self_.login) + " SET search_path = " + shown(self_.home));
        }
    }

    // Returns whether they are this binary's.
    bool migrations_applied() {
        for (auto const& line : ask_("SELECT number, name, oldest_binary FROM " + name(self_.home) +
                                     ".presenced_migrations ORDER BY number")) {
            int number = 0;
            auto const& text = at(line, 0);
            std::from_chars(text.data(), text.data() + text.size(), number);
            found_.applied.push_back({number, at(line, 1), at(line, 2)});
        }
        if (auto const why = misfit(found_.applied, version_)) {
            error(*why, "");
            return false;
        }
        return true;
    }

    void clock() {
        auto const clock = ask_("SELECT (extract(epoch FROM stale_after) * 1000)::bigint FROM " +
                                name(self_.home) + ".presence_clock");
        if (clock.empty()) {
            error("presence_clock is empty, and has one row where presenced made it",
                  "INSERT INTO presence_clock (stale_after) VALUES ('45 seconds')");
        } else {
            found_.stale_after = milliseconds{std::stoll(at(clock[0], 0))};
        }
    }

    void sequences(bool mend);

    ask_function const& ask_;
    session_identity const& self_;
    std::string_view version_;
    std::set<std::string> unreadable_; // tables
    judgement found_;
};

struct sequence_state {
    std::string table;
    std::string sequence; // quoted, with its schema
    std::string largest;  // id in the table
};

// Those that would give an id that is there already, as far as the role may see them.
std::vector<sequence_state> sequences_behind(ask_function const& ask, std::string const& home) {
    std::vector<sequence_state> behind;
    for (auto const* table : numbered_tables) {
        auto const qualified = name(home) + "." + name(table);
        auto const known =
            ask("SELECT s.name, pg_catalog.has_sequence_privilege(s.name, 'SELECT') "
                "AND pg_catalog.has_column_privilege(" +
                literal(qualified) +
                ", 'id', 'SELECT') "
                "FROM (SELECT CASE WHEN EXISTS ("
                "          SELECT FROM pg_catalog.pg_attribute WHERE attname = 'id' AND attrelid = "
                "          pg_catalog.to_regclass(" +
                literal(qualified) + ")) THEN pg_catalog.pg_get_serial_sequence(" +
                literal(qualified) + ", 'id') END) AS s (name) WHERE s.name IS NOT NULL");
        if (known.empty() || !is_true(known[0], 1)) {
            continue;
        }
        auto const& sequence = at(known[0], 0);
        auto const rows = ask("SELECT t.largest FROM " + sequence +
                              " s, (SELECT max(id) AS largest FROM " + qualified +
                              " WHERE id < 4611686018427387904) t " // as presenced_mend_sequences
                              "WHERE t.largest - s.is_called::integer >= s.last_value");
        if (!rows.empty()) {
            behind.push_back({table, sequence, at(rows[0], 0)});
        }
    }
    return behind;
}

// By the function that has the right to, in the schema's own words; the tables whose sequence it
// was. Nothing where this role may not call it.
std::vector<std::string> mend_sequences(ask_function const& ask, std::string const& home,
                                        std::string const& of_table) {
    auto const function = name(home) + ".presenced_mend_sequences";
    std::vector<std::string> mended;
    if (is_true(
            ask("SELECT coalesce(pg_catalog.has_function_privilege(pg_catalog.to_regprocedure(" +
                literal(function + "(text)") + "), 'EXECUTE'), false)")
                .at(0),
            0)) {
        for (auto const& line :
             ask("SELECT pg_catalog.unnest(" + function + "(" + of_table + "))")) {
            mended.push_back("of " + shown(home, at(line, 0)));
        }
    }
    return mended;
}

void judge_of::sequences(bool mend) {
    if (mend) {
        // The log's alone: in another table, whoever set the sequence back may have had a reason.
        for (auto& table : mend_sequences(ask_, self_.home, "'routing_transitions'")) {
            found_.mended.push_back(std::move(table));
        }
    }
    for (auto const& s : sequences_behind(ask_, self_.home)) {
        bool const of_log = s.table == "routing_transitions";
        auto const what = "sequence " + s.sequence + " is behind the rows of " + our(s.table) +
                          " (largest id " + s.largest +
                          "): new rows get ids that are there already";
        auto const cure = "presenced migrate, or SELECT setval('" + s.sequence + "', " + s.largest +
                          ") as the owner";
        if (of_log) {
            error(what, cure);
        } else {
            warning(what, cure);
        }
    }
}

} // namespace

bool judgement::has_errors() const {
    return std::any_of(problems.begin(), problems.end(),
                       [](auto const& p) { return p.how_bad == problem::weight::error; });
}

std::string judgement::reason() const {
    // One cause, such as a role without any grant, has many; the first few say enough.
    constexpr std::size_t most = 3;
    std::string text;
    std::size_t count = 0;
    for (auto const& p : problems) {
        if (p.how_bad == problem::weight::error && ++count <= most) {
            text += (text.empty() ? "" : "; ") + p.what + (p.cure.empty() ? "" : ": " + p.cure);
        }
    }
    if (count > most) {
        text += "; and " + std::to_string(count - most) + " more: presenced doctor lists them all";
    }
    return text;
}

judgement judge(ask_function const& ask, session_identity const& self,
                std::string_view binary_version, bool mend) {
    return judge_of{ask, self, binary_version}.run(mend);
}

std::vector<std::string> mend_sequences(ask_function const& ask, std::string const& home) {
    return mend_sequences(ask, home, "NULL");
}

} // namespace presenced::db
