#include "db/admin/admin.hpp"
#include "db/admin/schema.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/postgres.hpp"

#include <algorithm>
#include <fstream>
#include <future>
#include <map>
#include <sstream>

using namespace std::chrono_literals;
using namespace presenced::db;
using presenced::tests::eventually;
using presenced::tests::postgres;
using presenced::tests::sql_session;

namespace {

constexpr auto version = "0.1.0";

// What the operator is told; empty when nothing is wrong.
template <class Action>
std::string complaint(Action action) {
    try {
        action();
    } catch (schema_error const& e) {
        return e.what();
    }
    return {};
}

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

// The same database as somebody else.
std::string as_role(std::string const& conninfo, std::string const& role) {
    return conninfo + " user=" + role;
}

std::string fresh_role(sql_session& sql) {
    static int roles = 0;
    auto const role = "role_" + std::to_string(++roles);
    sql.query("CREATE ROLE " + role + " LOGIN");
    return role;
}

void tick(sql_session& sql) {
    sql.query("SELECT presenced_tick('alpha', 'boot', '0.1.0', '10 seconds', '{}')");
}

} // namespace

TEST_CASE("migrate applies each migration once and says which") {
    auto const database = postgres::shared().create_database(false);
    auto const first = migrate(database, std::nullopt);
    REQUIRE(first.applied.size() == migrations().size());
    CHECK(first.applied.front() == "0001_presence");
    CHECK(first.stale_after == 45s);
    auto const second = migrate(database, std::nullopt);
    CHECK(second.applied.empty());
    CHECK(second.stale_after == 45s);

    sql_session sql{database};
    CHECK(sql.number("SELECT count(*) FROM presenced_migrations") ==
          static_cast<long>(migrations().size()));
    CHECK(sql.value("SELECT oldest_binary FROM presenced_migrations WHERE number = 1") == "0.1.0");
}

TEST_CASE("many migrates at once apply each migration once") {
    auto const database = postgres::shared().create_database(false);
    std::vector<std::future<migrate_report>> all;
    for (int i = 0; i < 6; ++i) {
        all.push_back(std::async(std::launch::async, [&] { return migrate(database, 50s); }));
    }
    std::size_t applied = 0;
    for (auto& one : all) {
        auto const report = one.get();
        applied += report.applied.size();
        CHECK(report.stale_after == 50s);
    }
    CHECK(applied == migrations().size());
}

namespace {

// What makes up the schema, an object a line, in an order of its own.
std::vector<std::vector<std::string>> objects_of(std::string const& database) {
    sql_session sql{database};
    return sql.query(
        "SELECT l FROM ("
        "SELECT pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') FROM pg_proc p "
        "WHERE p.pronamespace = 'public'::regnamespace "
        "UNION ALL SELECT pg_get_triggerdef(t.oid) || t.tgenabled::text FROM pg_trigger t "
        "WHERE NOT t.tgisinternal "
        "UNION ALL SELECT conrelid::regclass::text || conname || pg_get_constraintdef(c.oid) "
        "FROM pg_constraint c WHERE c.connamespace = 'public'::regnamespace "
        "UNION ALL SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i "
        "WHERE i.indrelid IN (SELECT c.oid FROM pg_class c "
        "                     WHERE c.relnamespace = 'public'::regnamespace) "
        "UNION ALL SELECT concat_ws(' ', c.relname, c.relkind, c.reloptions, c.relacl, "
        "  CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) END) FROM pg_class c "
        "WHERE c.relnamespace = 'public'::regnamespace "
        "UNION ALL SELECT concat_ws(' ', a.attrelid::regclass, a.attnum, a.attname, "
        "  format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attcollation, "
        "  pg_get_expr(d.adbin, d.adrelid)) "
        "FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, "
        "a.attnum) WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attrelid IN "
        "(SELECT c.oid FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace) "
        "UNION ALL SELECT presence_clock::text FROM presence_clock "
        "UNION ALL SELECT sweep_state::text FROM sweep_state) o (l) ORDER BY l");
}

// A database as the first form of 0001_presence.sql made it.
std::string database_before() {
    auto const database = postgres::shared().create_database(false);
    std::ifstream file{PRESENCED_SOURCE_DIR "/tests/db/schema_before.sql"};
    std::ostringstream text;
    text << file.rdbuf();
    sql_session sql{database};
    sql.query(text.str());
    sql.query("CREATE TABLE presenced_migrations (number integer PRIMARY KEY, name text NOT NULL, "
              "oldest_binary text NOT NULL, "
              "applied_at timestamptz NOT NULL DEFAULT clock_timestamp());"
              "INSERT INTO presenced_migrations VALUES (1, '0001_presence', '0.1.0')");
    return database;
}

} // namespace

TEST_CASE("a database of the first schema and a fresh one end up the same") {
    auto const before = database_before();
    CHECK(migrate(before, std::nullopt).applied.size() == migrations().size() - 1);
    auto const fresh = postgres::shared().create_database(false);
    migrate(fresh, std::nullopt);
    auto const found = objects_of(before);
    auto const wanted = objects_of(fresh);
    CHECK(wanted.size() > 100);
    CHECK(found.size() == wanted.size());
    for (std::size_t i = 0; i < std::min(found.size(), wanted.size()); ++i) {
        REQUIRE(found[i] == wanted[i]);
    }
}

TEST_CASE("migrate lets a server that runs already go on") {
    auto const database = database_before();
    sql_session sql{database};
    auto const role = fresh_role(sql);
    sql.query("GRANT SELECT, UPDATE (routing_active, routing_changed_at) ON agents TO " + role +
              ";GRANT SELECT, INSERT, UPDATE, DELETE "
              "ON agent_subscriptions, nodes, routing_transitions TO " +
              role + ";GRANT SELECT, UPDATE ON presence_clock TO " + role);
    migrate(database, std::nullopt);
    sql.query("INSERT INTO agents (id, owner_id) VALUES (7, 1)");
    sql_session server{as_role(database, role)};
    tick(server);
    CHECK(server.value("SELECT flips FROM presenced_transition('{acquire}', '{7}', '{t}', "
                       "'{NULL}', '{1}', 'n', clock_timestamp() + interval '1 s', false)") ==
          "{\"7 on subscribed\"}");
    CHECK(server.value("SELECT missing FROM presenced_renew('{7}', '{t}', false, 'n', 'b', 'v', "
                       "'10 s', '{}')") == "{}");
    sql.query("DELETE FROM agent_subscriptions");
    CHECK(server.value("SELECT flips FROM presenced_sweep('n', 'b', '0 s', '90 d', 500)") ==
          "{\"7 off reconciled\"}");
}

TEST_CASE("migrate refuses a table that it did not make, names it and leaves it alone") {
    auto const database = postgres::shared().create_database(false);
    sql_session sql{database};
    SECTION("one of the schema's") {
        sql.query("CREATE TABLE agents (name text)");
        auto const said = complaint([&] { migrate(database, std::nullopt); });
        CHECK(has(said, "public.agents is there and presenced did not make it"));
        CHECK(has(said, "search_path"));
    }
    SECTION("the last of them: nothing of the migration stays") {
        sql.query("CREATE TABLE presence_clock (name text)");
        CHECK(has(complaint([&] { migrate(database, std::nullopt); }), "public.presence_clock"));
        CHECK(sql.value("SELECT to_regclass('agents')").empty());
        CHECK(sql.value("SELECT to_regclass('presenced_migrations')").empty());
    }
    SECTION("one of a later migration's") {
        auto const name = GENERATE("live_agent_subscriptions", "sweep_queue");
        sql.query(std::string{"CREATE VIEW "} + name + " AS SELECT 1 AS name");
        CHECK(has(complaint([&] { migrate(database, std::nullopt); }),
                  std::string{"public."} + name + " is there and presenced did not make it"));
        CHECK(sql.value("SELECT to_regclass('presenced_migrations')").empty());
    }
    SECTION("a table called presenced_migrations") {
        sql.query("CREATE TABLE presenced_migrations (version text)");
        CHECK(has(complaint([&] { migrate(database, std::nullopt); }),
                  "public.presenced_migrations is there and presenced did not make it"));
    }
    SECTION("in another schema: that is no obstacle") {
        sql.query("CREATE TABLE agents (name text); CREATE SCHEMA presenced");
        auto const elsewhere = database + " options='-c search_path=presenced,public'";
        CHECK(migrate(elsewhere, std::nullopt).applied.size() == migrations().size());
        CHECK(check_schema(elsewhere, version).stale_after == 45s);
        CHECK(sql.number("SELECT count(*) FROM presenced.agents") == 0);
    }
}

TEST_CASE("stale_after is recorded and stays until it is changed") {
    auto const database = postgres::shared().create_database(false);
    CHECK(migrate(database, 3s).stale_after == 3s);
    CHECK(migrate(database, std::nullopt).stale_after == 3s);
    CHECK(check_schema(database, version).stale_after == 3s);
    CHECK(migrate(database, 2500ms).stale_after == 2500ms);
    CHECK(check_schema(database, version).stale_after == 2500ms);
}

TEST_CASE("stale_after does not change while a node ticks") {
    auto const database = postgres::shared().create_database();
    sql_session sql{database};
    tick(sql);
    auto const said = complaint([&] { migrate(database, 60s); });
    CHECK(has(said, "from 45s to 60s"));
    CHECK(has(said, "alpha"));
    CHECK(has(said, "wait 10s"));
    CHECK(migrate(database, 45s).stale_after == 45s); // no change
    sql.query("UPDATE presence_clock SET ticked_at = ticked_at - interval '1 hour', "
              "judge_until = judge_until - interval '1 hour'");
    CHECK(migrate(database, 60s).stale_after == 60s);
}

TEST_CASE("a schema that is missing, old, new or strange is named") {
    auto const database = postgres::shared().create_database(false);
    sql_session sql{database};
    auto const said = [&] {
        return complaint([&] { check_schema(database, version); });
    };
    CHECK(has(said(), "has no tables of presenced"));
    CHECK(has(said(), "presenced migrate"));

    migrate(database, std::nullopt);
    CHECK(said().empty());
    CHECK(check_schema(database, version).version == migrations().back().number);

    SECTION("newer, and this binary may run on it") {
        sql.query("INSERT INTO presenced_migrations VALUES (9999, '9999_more', '0.1.0')");
        CHECK(said().empty());
        CHECK(migrate(database, std::nullopt).applied.empty());
    }
    SECTION("newer, and this binary may not: the versions compare as numbers") {
        sql.query("INSERT INTO presenced_migrations VALUES (9999, '9999_more', '0.10.0')");
        CHECK(has(said(), "9999_more"));
        CHECK(has(said(), "0.10.0 or newer"));
        CHECK(complaint([&] { check_schema(database, "0.10.0"); }).empty());
        CHECK(complaint([&] { check_schema(database, "1.0.0"); }).empty());
        CHECK_FALSE(complaint([&] { check_schema(database, "0.9.9"); }).empty());
        CHECK(has(complaint([&] { migrate(database, std::nullopt); }), "0.10.0 or newer"));
    }
    SECTION("another build's") {
        sql.query("UPDATE presenced_migrations SET name = '0001_other' WHERE number = 1");
        CHECK(has(said(), "0001_other"));
        CHECK(has(complaint([&] { migrate(database, std::nullopt); }), "0001_other"));
    }
    SECTION("the one row of presence_clock is gone") {
        sql.query("DELETE FROM presence_clock");
        CHECK(has(said(), "presence_clock is empty"));
    }
    SECTION("a table is gone") {
        sql.query("DROP TABLE presence_clock CASCADE");
        CHECK(has(said(), "table presence_clock is not"));
    }
}

TEST_CASE("the schema is checked by a role that may only read") {
    auto const database = postgres::shared().create_database();
    sql_session sql{database};
    auto const role = fresh_role(sql);
    auto const reader = as_role(database, role);
    CHECK(has(complaint([&] { check_schema(reader, version); }), "lacks a grant"));
    sql.query("GRANT SELECT ON presenced_migrations, presence_clock TO " + role);
    CHECK(check_schema(reader, version).stale_after == 45s);
    CHECK(migrate(reader, std::nullopt).applied.empty()); // nothing to do, and so nothing to grant
}

TEST_CASE("migrate says so when it may not create tables") {
    auto const database = postgres::shared().create_database(false);
    sql_session sql{database};
    auto const role = fresh_role(sql);
    auto const said = complaint([&] { migrate(as_role(database, role), std::nullopt); });
    CHECK(has(said, "role " + role + " may not create tables in schema public"));
    CHECK(has(said, "GRANT CREATE ON SCHEMA public TO " + role));
}

TEST_CASE("migrate says so when the database is read-only or search_path leads nowhere") {
    auto const database = postgres::shared().create_database(false);
    CHECK(has(complaint([&] {
                  migrate(database + " options='-c default_transaction_read_only=on'",
                          std::nullopt);
              }),
              "read-only"));
    CHECK(has(
        complaint([&] { migrate(database + " options='-c search_path=nowhere'", std::nullopt); }),
        "search_path is nowhere"));
}

TEST_CASE("an unreachable database is told from an unfit one") {
    CHECK_THROWS_AS(migrate("host=127.0.0.1 port=1 connect_timeout=2", std::nullopt),
                    unreachable_error);
    CHECK_THROWS_AS(check_schema("host=127.0.0.1 port=1", version), unreachable_error);
    CHECK_THROWS_AS(check_schema(postgres::shared().conninfo("no_such_database"), version),
                    unreachable_error);
    CHECK_THROWS_AS(check_schema("postgresql://h/d?pool=3", version), schema_error);
}

TEST_CASE("agents and tokens are made, listed and revoked") {
    auto const database = postgres::shared().create_database();
    admin desk{database};
    CHECK(desk.agents().empty());
    auto const agent = desk.create_agent(7, "it's \"Zoë\"; --");
    CHECK(agent.name == "it's \"Zoë\"; --");
    CHECK(agent.owner == 7);
    CHECK_FALSE(agent.routing_active);
    REQUIRE(desk.agents().size() == 1);
    CHECK(desk.agents().front().id == agent.id);

    token_digest digest{};
    digest[0] = 0xff;
    digest[31] = 0x01;
    auto const lasting = desk.issue_token({.owner = 7, .label = "laptop", .digest = digest});
    CHECK(lasting.state == "active");
    CHECK(lasting.expires_at.empty());
    digest[0] = 0x00;
    auto const brief = desk.issue_token({.owner = 7, .digest = digest, .expires_in = 1s});
    CHECK_FALSE(brief.expires_at.empty());
    CHECK(eventually([&] { return desk.tokens().back().state == "expired"; }));

    sql_session sql{database};
    CHECK(sql.value("SELECT encode(token_sha256, 'hex') FROM access_tokens WHERE id = " +
                    std::to_string(lasting.id)) == "ff" + std::string(60, '0') + "01");

    auto const revoked = desk.revoke_token(lasting.id);
    REQUIRE(revoked);
    CHECK(revoked->state == "revoked");
    CHECK(desk.revoke_token(lasting.id)->revoked_at == revoked->revoked_at); // stays as it was
    CHECK_FALSE(desk.revoke_token(lasting.id + 1000));
}

TEST_CASE("status shows what is live, and says when nobody can know") {
    auto const database = postgres::shared().create_database();
    admin desk{database};
    sql_session sql{database};
    CHECK_FALSE(desk.status().presence_known); // before the first tick

    auto const agent = desk.create_agent(7, "demo").id;
    desk.create_agent(7, "idle");
    sql.query("UPDATE agents SET routing_active = true WHERE id = " + std::to_string(agent));
    sql.query("INSERT INTO agent_subscriptions (agent_id, token, session_id, node) VALUES (" +
              std::to_string(agent) + ", 'one', 'laptop', 'alpha')");
    tick(sql);

    auto const report = desk.status();
    CHECK(report.presence_known);
    REQUIRE(report.agents.size() == 1); // not the idle one
    CHECK(report.agents.front().name == "demo");
    CHECK(report.agents.front().sessions == 1);
    REQUIRE(report.sessions.size() == 1);
    CHECK(report.sessions.front().agent == agent);
    CHECK(report.sessions.front().session_id == "laptop");
    CHECK(report.sessions.front().age < 1min);
    REQUIRE(report.nodes.size() == 1);
    CHECK(report.nodes.front().node == "alpha");
    CHECK(report.nodes.front().sessions == 1);

    sql.query("UPDATE presence_clock SET ticked_at = ticked_at - interval '1 hour'");
    CHECK_FALSE(desk.status().presence_known);
}

namespace {

struct boots_world {
    std::string database = postgres::shared().create_database();
    admin desk{database};
    sql_session sql{database};
    agent_id agent = desk.create_agent(7, "demo").id;

    boots_world() { sql.query("UPDATE presence_clock SET stale_after = interval '45 minutes'"); }

    // Ages in minutes: when the boot began, and its newest tick.
    void boot(std::string const& id, int started, int ticked, std::string const& node = "alpha") {
        sql.query("INSERT INTO nodes (node, boot_id, started_at, ticked_at) VALUES ('" + node +
                  "', '" + id + "', clock_timestamp() - interval '" + std::to_string(started) +
                  " minutes', clock_timestamp() - interval '" + std::to_string(ticked) +
                  " minutes')");
    }
    void session(std::string const& id, int made, int seen, std::string const& node = "alpha") {
        sql.query("INSERT INTO agent_subscriptions "
                  "(agent_id, token, session_id, node, created_at, last_seen_at) VALUES (" +
                  std::to_string(agent) + ", '" + id + "', '" + id + "', '" + node +
                  "', clock_timestamp() - interval '" + std::to_string(made) +
                  " minutes', clock_timestamp() - interval '" + std::to_string(seen) +
                  " minutes')");
    }
    // "session: boot", by session.
    std::map<std::string, std::string> boots_of_sessions() {
        std::map<std::string, std::string> found;
        for (auto const& s : desk.status().sessions) {
            found[s.session_id] = s.boot_id;
        }
        return found;
    }
    // "boot: sessions", with "?" where they cannot be told apart and "gone" for those that are.
    std::map<std::string, std::string> boots() {
        std::map<std::string, std::string> found;
        for (auto const& n : desk.status().nodes) {
            found[n.boot_id] =
                (n.shares_name ? "?" : std::to_string(n.sessions)) + (n.gone ? " gone" : "");
        }
        return found;
    }
};

using texts = std::map<std::string, std::string>;

} // namespace

TEST_CASE("status gives a session to the boot that wrote its row last") {
    boots_world w;
    w.boot("crashed", 4'000, 3'000);
    w.boot("killed", 900, 30);
    w.boot("new", 20, 1);
    w.boot("other", 9'000, 1, "beta");
    w.session("before", 800, 31);
    w.session("after", 15, 15);
    // Subscribed before the boot's first tick landed, and renewed since.
    w.session("early", 21, 6);
    w.session("elsewhere", 800, 10, "beta");
    w.session("foreign", 800, 10, "");
    CHECK(w.boots_of_sessions() == texts{{"before", "killed"},
                                         {"after", "new"},
                                         {"early", "new"},
                                         {"elsewhere", "other"},
                                         {"foreign", ""}});
    CHECK(w.boots() == texts{{"crashed", "0 gone"}, {"killed", "1"}, {"new", "2"}, {"other", "1"}});
}

TEST_CASE(
    "status says which boots run under one name, and does not guess whose sessions are whose") {
    boots_world w;
    w.boot("killed", 900, 310);
    w.boot("one", 300, 1);
    w.boot("two", 40, 1);
    w.boot("other", 300, 1, "beta");
    w.session("first", 200, 10);
    w.session("second", 30, 10);
    w.session("elsewhere", 200, 10, "beta");
    CHECK(w.boots() == texts{{"killed", "0 gone"}, {"one", "?"}, {"two", "?"}, {"other", "1"}});
    CHECK(w.boots_of_sessions() == texts{{"first", ""}, {"second", ""}, {"elsewhere", "other"}});
    // A boot that ran beside another and has ended is no mistake any more, whichever it is.
    auto const ends = [&](std::string const& boot) {
        w.sql.query("UPDATE nodes SET ticked_at = clock_timestamp() - interval '50 minutes' "
                    "WHERE boot_id = '" +
                    boot + "'");
    };
    SECTION("the older one") {
        ends("one");
        CHECK(w.boots() ==
              texts{{"killed", "0 gone"}, {"one", "0 gone"}, {"two", "2"}, {"other", "1"}});
    }
    SECTION("the newer one") {
        ends("two");
        CHECK(w.boots() ==
              texts{{"killed", "0 gone"}, {"one", "2"}, {"two", "0 gone"}, {"other", "1"}});
        CHECK(w.boots_of_sessions() ==
              texts{{"first", "one"}, {"second", "one"}, {"elsewhere", "other"}});
    }
}

TEST_CASE("the command line says what is missing when the database was never migrated") {
    auto const database = postgres::shared().create_database(false);
    CHECK(has(complaint([&] { admin desk{database}; }), "presenced migrate"));
}
