// A running node whose database is there, and is not what it was.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <csignal>

using namespace presenced::tests;

namespace {

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

bool says(node const& n, std::string const& part) {
    auto const answer = n.get("/readyz");
    return answer.status == 503 && has(answer.body, part);
}

} // namespace

TEST_CASE("a node whose schema is migrated past it is not ready, says so, and goes on serving") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    w.sql().query("INSERT INTO presenced_migrations (number, name, oldest_binary) "
                  "VALUES (9998, '9998_more', '0.0.1')");
    w.sql().query("INSERT INTO presenced_migrations (number, name, oldest_binary) "
                  "VALUES (9999, '9999_much_more', '99.0.0')");
    REQUIRE(eventually([&] { return says(*n, "9999_much_more needs presenced 99.0.0"); }));
    CHECK(n->log_has("database does not fit"));
    CHECK(n->get("/healthz").status == 200);
    CHECK(w.is_active(agent));
    w.sql().query("DELETE FROM presenced_migrations WHERE number = 9999");
    CHECK(eventually([&] { return n->get("/readyz").status == 200; }));
    CHECK(w.rows(agent) == 1);
}

TEST_CASE("a node that finds another stale_after recorded than it runs with drains and ends") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    // As migrate does while this node is cut off.
    w.sql().query("UPDATE presence_clock SET stale_after = interval '9 seconds'");
    CHECK(n->wait() == 1);
    CHECK(n->log_has("stale_after is 9000ms in the database, and this node runs with 4500ms"));
    CHECK(c->next() == "disconnect server_restart reconnect:true");
    CHECK(w.rows() == 0);
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
}

TEST_CASE("a node that is leaving already leaves once, whatever it finds recorded meanwhile") {
    world w;
    auto const n = w.start_node({{"PRESENCED_DRAIN_DELAY", "3s"}});
    n->signal(SIGTERM);
    REQUIRE(eventually([&] { return says(*n, "draining"); }));
    w.sql().query("UPDATE presence_clock SET stale_after = interval '9 seconds'");
    // A look at it, and then one a second by whoever decides to leave.
    CHECK(n->log_has("database does not fit"));
    CHECK(n->wait() == 0);
    CHECK_FALSE(has(n->log(), "app leaves"));
}

TEST_CASE("a node that starts while somebody holds its table says what it waits for") {
    world w;
    auto holder = w.another_session();
    holder.query("BEGIN; LOCK TABLE agent_subscriptions");
    node n{w.node_settings()};
    REQUIRE(eventually([&] { return has(n.get("/readyz").body, "no renewal has got through"); }));
    CHECK(has(n.get("/readyz").body, "agent_subscriptions"));
    holder.query("ROLLBACK");
    n.await_ready();
}

TEST_CASE("somebody who holds the clock's row stops lease time, and /readyz and metrics tell") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto holder = w.another_session();
    holder.query("BEGIN; SELECT FROM presence_clock FOR UPDATE");
    REQUIRE(eventually([&] { return says(*n, "lease time stands still"); }));
    CHECK(has(n->get("/readyz").body, "presence_clock"));
    CHECK(n->metric("presenced_last_tick_age_seconds") >= 1);
    CHECK(n->metric("presenced_ready") == 0);
    CHECK(eventually([&] { return n->log_has("app not ready why="); }));
    auto const renewed = n->metric("presenced_renewals_total{result=\"renewed\"}");
    CHECK(eventually(
        [&] { return n->metric("presenced_renewals_total{result=\"renewed\"}") > renewed; }));
    holder.query("ROLLBACK");
    CHECK(eventually([&] { return n->get("/readyz").status == 200; }));
    CHECK(eventually([&] { return n->log_has("app ready again after_ms="); }));
    CHECK(n->metric("presenced_last_tick_age_seconds") < 1);
    CHECK(w.rows(agent) == 1);
}

TEST_CASE("a node without a right it needs is not ready and names the GRANT, in one log line") {
    world w;
    w.sql().query("CREATE ROLE serving LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO serving;"
                  "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO serving");
    auto conninfo = w.conninfo();
    conninfo.replace(conninfo.find("user=postgres "), 14, "user=serving ");
    {
        auto const n = w.start_node({{"DATABASE_URL", conninfo}});
        auto const agent = w.add_agent();
        auto const c = w.subscriber(*n, agent);
        w.sql().query("REVOKE UPDATE ON agents FROM serving");
        REQUIRE(eventually([&] {
            return says(*n, "GRANT UPDATE (routing_active, routing_changed_at, "
                            "flips_paid_until) ON public.agents TO serving");
        }));
        CHECK(n->metric("presenced_database_up") == 0);
        CHECK(n->metric("presenced_ready") == 0);
        auto const doctor = w.presenced({"doctor"}, {{"DATABASE_URL", conninfo}});
        CHECK(doctor.code == 1);
        CHECK(has(doctor.output, "error: role serving lacks UPDATE"));
        w.sql().query("GRANT UPDATE ON agents TO serving");
        CHECK(eventually([&] { return n->get("/readyz").status == 200; }));
        CHECK(n->metric("presenced_database_up") == 1);
        CHECK(n->log_has("database fits again"));
        CHECK_FALSE(has(n->log(), "database away"));
        auto const begins = n->log().find("database does not fit");
        CHECK(begins != std::string::npos);
        CHECK(n->log().find("database does not fit", begins + 1) == std::string::npos);
        auto const sound = w.presenced({"doctor"}, {{"DATABASE_URL", conninfo}});
        CHECK(sound.code == 0);
        CHECK(has(sound.output, "nothing is wrong"));
    }
    w.sql().query("DROP OWNED BY serving; DROP ROLE serving");
}

TEST_CASE("status reads sessions and dates that presenced never writes") {
    world w;
    auto const agent = w.add_agent();
    w.sql().query("INSERT INTO agent_subscriptions (agent_id, token, session_id, created_at) "
                  "VALUES (" +
                  std::to_string(agent) +
                  ", 'x', '\u65e5', '-infinity');"
                  "UPDATE agents SET created_at = '-infinity', routing_changed_at = 'infinity';"
                  "INSERT INTO nodes (node, boot_id, started_at) VALUES ('n', 'b', '-infinity')");
    auto const status = w.presenced({"status", "--json"}, {{"PGCLIENTENCODING", "LATIN1"}});
    CHECK(status.code == 0);
    CHECK(has(status.output, "\u65e5"));
    CHECK(has(status.output, "\"age_ms\": null"));
    CHECK(w.presenced({"status"}).code == 0);
    CHECK(w.presenced({"agent", "list"}).code == 0);
    auto const made = w.presenced({"agent", "create", "--owner", "1", "--name", "\u65e5"},
                                  {{"PGCLIENTENCODING", "LATIN1"}});
    CHECK(made.code == 0);
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE name = '\u65e5'") == 1);
}
