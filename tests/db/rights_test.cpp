// A node whose role, settings or rights are not what they should be: nobody is told a lie, the
// reason is said once, and all is done once it is put right.
#include "db/admin/schema.hpp"
#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

bool is_unfit(node const& n, std::string const& part) {
    return eventually([&] { return has(n.store->health().unfit, part); });
}

presence::settings quick_sweeps() {
    presence::settings timings;
    timings.sweep = 500ms;
    return timings;
}

long add_token(world& w, char const* byte) {
    return w.sql.number("INSERT INTO access_tokens (token_sha256, owner_id) VALUES "
                        "(decode(rpad('" +
                        std::string{byte} + "', 64, '0'), 'hex'), 1) RETURNING id");
}

} // namespace

TEST_CASE("a log whose sequence is behind its rows rejects nobody, and migrate puts it right",
          "[db][rights]") {
    world w;
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason) "
                "SELECT 1, true, 'subscribed' FROM generate_series(1, 500) g;"
                "ALTER SEQUENCE routing_transitions_id_seq RESTART");
    node a{w.conninfo, "a", quick_sweeps()};
    REQUIRE(a.is_up());
    auto const key = a.acquire(3, a.token());
    REQUIRE(eventually(
        [&] { return a.failures.of("transition") > 2 || !a.box.outcomes(key).empty(); }));
    db::migrate(w.conninfo, std::nullopt);
    CHECK(a.got(key, lease_outcome::acquired, 20s));
    CHECK(eventually([&] { return w.flag(3); }));
}

TEST_CASE("a node that may set the log's sequence puts it right by itself", "[db][rights]") {
    world w;
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason) "
                "SELECT 1, true, 'subscribed' FROM generate_series(1, 500) g;"
                "ALTER SEQUENCE routing_transitions_id_seq RESTART;");
    static_cast<void>(as_server(w.conninfo)); // makes the role
    w.sql.query("GRANT SELECT, UPDATE ON SEQUENCE routing_transitions_id_seq TO presenced_server");
    node a{w.conninfo, "a", quick_sweeps()};
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    CHECK(eventually([&] { return w.flag(3); }));
}

TEST_CASE("a constraint of another table than agent_subscriptions rejects no subscribe",
          "[db][rights]") {
    world w;
    w.sql.query("CREATE TABLE audit (token text UNIQUE); INSERT INTO audit VALUES ('x');"
                "GRANT INSERT ON audit TO PUBLIC");
    w.add_trigger("INSERT", "true", "INSERT INTO audit VALUES ('x')");
    node a{w.conninfo};
    auto const key = a.acquire(3, a.token());
    REQUIRE(eventually([&] { return a.failures.of("transition") > 2; }));
    CHECK(a.box.outcomes(key).empty());
    w.drop_trigger();
    CHECK(a.got(key, lease_outcome::acquired));
}

TEST_CASE("row level security makes no token unknown and ends no session: the node is not ready",
          "[db][rights]") {
    world w;
    auto const id = add_token(w, "09");
    node a{w.conninfo, "a", quick_sweeps()};
    REQUIRE(a.is_up());
    w.sql.query("ALTER TABLE access_tokens ENABLE ROW LEVEL SECURITY");
    auto const key = a.authenticate(9);
    a.store->check({{{id, 1, db::token_role::session, nullptr}}, {}, &a.box});
    REQUIRE(is_unfit(a, "row level security on public.access_tokens"));
    CHECK(has(a.store->health().unfit, "DISABLE ROW LEVEL SECURITY"));
    REQUIRE(eventually(
        [&] { return a.failures.of("authenticate") + a.failures.of("check_tokens") > 0; }));
    CHECK_FALSE(a.box.tokens().contains(key));
    CHECK(a.box.checks().empty());
    w.sql.query("ALTER TABLE access_tokens DISABLE ROW LEVEL SECURITY");
    REQUIRE(eventually([&] { return a.box.tokens().contains(key); }));
    CHECK(a.box.tokens().at(key).outcome == token_outcome::valid);
    REQUIRE(eventually([&] { return a.box.checks().size() == 1; }));
    CHECK(a.box.checks()[0].ended.empty());
    CHECK(eventually([&] { return a.store->health().unfit.empty(); }));
}

TEST_CASE("row level security on agents or subscriptions rejects nobody and loses no lease",
          "[db][rights]") {
    std::string const table = GENERATE("agents", "agent_subscriptions");
    world w;
    node a{w.conninfo, "a", quick_sweeps()};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.sql.query("ALTER TABLE " + table + " ENABLE ROW LEVEL SECURITY");
    auto const acquire = a.acquire(5, a.token());
    auto const renewal = a.renew(3, token);
    REQUIRE(is_unfit(a, "row level security on public." + table));
    w.sql.query("ALTER TABLE " + table + " DISABLE ROW LEVEL SECURITY");
    CHECK(a.got(acquire, lease_outcome::acquired));
    CHECK(a.got(renewal, lease_outcome::renewed));
    CHECK(w.flag(3));
    CHECK(w.flag(5));
}

TEST_CASE("a role that may not end its lost sessions gets the database back all the same",
          "[db][rights]") {
    world w;
    SECTION("no right to end a backend") {
        w.sql.query("REVOKE EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) FROM PUBLIC");
    }
    SECTION("no sight of its backends") {
        w.sql.query("REVOKE SELECT ON pg_stat_activity FROM PUBLIC");
    }
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.terminate_all();
    CHECK(a.got(a.acquire(5, a.token()), lease_outcome::acquired, 20s));
    CHECK(a.got(a.renew(3, token), lease_outcome::renewed));
    CHECK(a.is_up());
}

TEST_CASE("a role that logs in and becomes another one serves, and ends its lost sessions",
          "[db][rights]") {
    world w;
    static_cast<void>(as_server(w.conninfo)); // makes the role
    if (w.sql.query("SELECT FROM pg_roles WHERE rolname = 'rotating'").empty()) {
        w.sql.query("CREATE ROLE rotating LOGIN IN ROLE presenced_server;"
                    "ALTER ROLE rotating NOINHERIT; ALTER ROLE rotating SET role = "
                    "'presenced_server'");
    }
    db::postgres_options options;
    auto conninfo = w.conninfo;
    auto const user = conninfo.find("user=postgres ");
    conninfo.replace(user, 14, "user=rotating ");
    node a{conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.terminate_all();
    // Within the time that it would wait for a session that it cannot end.
    CHECK(a.got(a.acquire(5, a.token()), lease_outcome::acquired, 4s));
    CHECK(a.is_up());
    CHECK(a.store->health().unfit.empty());
}

TEST_CASE("a namesake before presenced's schema in search_path gets neither flags nor rows",
          "[db][rights]") {
    auto const database = postgres::shared().create_database(false);
    sql_session sql{database};
    sql.query("CREATE SCHEMA presence");
    db::migrate(database + " options='-c search_path=presence'", std::nullopt);
    sql.query("INSERT INTO presence.agents (id, owner_id) VALUES (3, 1);"
              "CREATE TABLE public.agents (LIKE presence.agents INCLUDING ALL);"
              "INSERT INTO public.agents (id, owner_id) VALUES (3, 1);"
              "CREATE TABLE public.agent_subscriptions "
              "(LIKE presence.agent_subscriptions INCLUDING ALL);");
    // Spelled so that the tests' own role stays: this database has no documented grants.
    auto conninfo = database + " options='-c search_path=public,presence'";
    conninfo.replace(conninfo.find("user=postgres "), 14, "user='postgres' ");
    CHECK(db::migrate(conninfo, std::nullopt).applied.empty());
    node a{conninfo};
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    CHECK(sql.value("SELECT routing_active FROM presence.agents") == "t");
    CHECK(sql.value("SELECT routing_active FROM public.agents") == "f");
    CHECK(sql.number("SELECT count(*) FROM public.agent_subscriptions") == 0);
}

TEST_CASE("idle threads notice that their sessions are gone, and readiness with them",
          "[db][rights]") {
    world w;
    static_cast<void>(as_server(w.conninfo));
    w.sql.query("CREATE ROLE limited LOGIN IN ROLE presenced_server");
    auto conninfo = w.conninfo;
    conninfo.replace(conninfo.find("user=postgres "), 14, "user=limited ");
    {
        node a{conninfo};
        REQUIRE(a.is_up());
        w.sql.query("ALTER ROLE limited CONNECTION LIMIT 2");
        w.terminate_all();
        // Nobody asks for anything.
        CHECK(eventually(
            [&] { return has(a.store->health().problem, "too many connections for role"); }));
        CHECK_FALSE(a.store->health().reachable);
        w.sql.query("ALTER ROLE limited CONNECTION LIMIT -1");
        CHECK(a.is_up());
    }
    w.sql.query("DROP ROLE limited");
}

TEST_CASE("a right that is missing takes the database away once, until it is there again",
          "[db][rights]") {
    world w;
    node a{w.conninfo, "a", quick_sweeps()};
    REQUIRE(a.is_up());
    std::string right;
    std::string table;
    SECTION("of agents, which no tick needs") {
        right = "UPDATE (routing_active, routing_changed_at)";
        table = "agents";
    }
    SECTION("of the clock, which every tick needs") {
        right = "UPDATE";
        table = "presence_clock";
    }
    w.sql.query("REVOKE " + right + " ON " + table + " FROM presenced_server");
    REQUIRE(is_unfit(a, "role presenced_server lacks UPDATE"));
    auto const key = a.acquire(3, a.token());
    auto const before = a.failures.of("renew") + a.failures.of("transition");
    REQUIRE(eventually(
        [&] { return a.failures.of("renew") + a.failures.of("transition") > before + 3; }, 20s));
    CHECK(a.failures.outages() == 1);
    CHECK_FALSE(a.store->health().unfit.empty());
    w.sql.query("GRANT " + right + " ON " + table + " TO presenced_server");
    CHECK(eventually([&] { return a.store->health().unfit.empty(); }));
    CHECK(a.got(key, lease_outcome::acquired, 20s));
    CHECK(a.is_up());
    CHECK(a.failures.outages() == 1);
}
