#include "tests/db/node.hpp"

#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

using namespace presenced;
using namespace presenced::tests;

namespace {

using log_rows = std::vector<std::vector<std::string>>;

log_rows logged(world& w, std::string const& where = "true") {
    return w.sql.query("SELECT agent_id, active, reason FROM routing_transitions WHERE " + where +
                       " ORDER BY id");
}

// Subscribes and releases agent 7. Each flip has to happen and to be notified, whatever the log
// does.
void flip_twice(world& w, node& a) {
    w.sql.query("LISTEN presenced_routing");
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    CHECK(w.flag(7));
    REQUIRE(a.got(a.release(7, token), lease_outcome::released));
    CHECK_FALSE(w.flag(7));
    CHECK(w.rows() == 0);
    std::size_t heard = 0;
    CHECK(eventually([&] {
        w.sql.query("SELECT 1");
        for (auto const& payload : w.sql.notifications()) {
            heard += payload.find(R"("agent_id":7,)") != std::string::npos ? 1U : 0U;
        }
        return heard >= 2;
    }));
    CHECK(heard == 2);
    CHECK(a.failures.of("transition") == 0);
}

log_rows const both_flips{{"7", "t", "subscribed"}, {"7", "f", "unsubscribed"}};

// A trigger of somebody else's on the log.
void add_log_trigger(world& w, std::string const& body) {
    w.sql.query("CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " + body +
                " END $$; CREATE TRIGGER theirs BEFORE INSERT ON routing_transitions "
                "FOR EACH ROW EXECUTE FUNCTION theirs()");
}

} // namespace

TEST_CASE("P1: a log whose sequence is behind its rows stops no flip, and loses none",
          "[db][log]") {
    world w;
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason) "
                "SELECT 1, g % 2 = 1, 'subscribed' FROM generate_series(1, 1000) g;"
                "ALTER SEQUENCE routing_transitions_id_seq RESTART");
    node a{w.conninfo};
    flip_twice(w, a);
    CHECK(logged(w, "agent_id = 7") == both_flips);
    CHECK(logged(w, "id > 1000") == both_flips); // behind the others
}

TEST_CASE("the sweep and presenced_mend_sequences put sequences in front of their rows",
          "[db][log]") {
    world w;
    w.sql.query("INSERT INTO routing_transitions (id, agent_id, active, reason) "
                "VALUES (500, 1, true, 'subscribed');"
                "INSERT INTO access_tokens (id, token_sha256, owner_id) "
                "VALUES (70, sha256('x'), 1)");
    SECTION("all of them") {
        CHECK(w.sql.value("SELECT presenced_mend_sequences()") ==
              "{agents,access_tokens,routing_transitions}");
        CHECK(w.sql.value("SELECT presenced_mend_sequences()") == "{}");
    }
    SECTION("the log's in a sweep, and those of others are left alone") {
        w.sql.query("SELECT presenced_sweep('n', 'b', '0 s', '90 d', 500)");
        CHECK(w.sql.value("SELECT presenced_mend_sequences()") == "{agents,access_tokens}");
    }
    CHECK(w.sql.value("INSERT INTO agents (owner_id) VALUES (1) RETURNING id") == "10");
    CHECK(w.sql.value("INSERT INTO access_tokens (token_sha256, owner_id) "
                      "VALUES (sha256('y'), 1) RETURNING id") == "71");
    CHECK(w.sql.value("INSERT INTO routing_transitions (agent_id, active, reason) "
                      "VALUES (1, false, 'expired') RETURNING id") == "501");
}

TEST_CASE("an id at the end of bigint leaves the sequence where it is", "[db][log]") {
    auto const id = GENERATE("9223372036854775807", "9223372036854775806", "4611686018427387904");
    world w;
    w.sql.query("SELECT presenced_mend_sequences();"
                "INSERT INTO agents (id, owner_id) VALUES (" +
                std::string{id} + ", 1)");
    CHECK(w.sql.value("SELECT presenced_mend_sequences()") == "{}");
    CHECK(w.sql.value("INSERT INTO agents (owner_id) VALUES (1) RETURNING id") == "10");
}

TEST_CASE("P1: whatever somebody does to the log, flips happen and are notified", "[db][log]") {
    world w;
    as_server(w.conninfo); // the grants, while all tables are there
    SECTION("a constraint that no row passes") {
        w.sql.query("ALTER TABLE routing_transitions ADD CHECK (agent_id <> 7)");
    }
    SECTION("a trigger that fails") {
        add_log_trigger(w, "RAISE EXCEPTION 'no';");
    }
    SECTION("a trigger that is broken") {
        add_log_trigger(w, "PERFORM no_such_function();");
    }
    SECTION("a trigger that drops the row") {
        add_log_trigger(w, "RETURN NULL;");
    }
    SECTION("a trigger that fails at commit") {
        w.sql.query("CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'no'; END $$;"
                    "CREATE CONSTRAINT TRIGGER theirs AFTER INSERT OR DELETE ON "
                    "routing_transitions DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION theirs()");
        w.sql.query("SET session_replication_role = replica;"
                    "INSERT INTO routing_transitions (agent_id, active, reason, at) "
                    "VALUES (1, true, 'subscribed', now() - interval '1 year');"
                    "RESET session_replication_role");
    }
    SECTION("no right to write") {
        w.sql.query("REVOKE INSERT, DELETE ON routing_transitions FROM presenced_server");
    }
    SECTION("a log that is gone") {
        w.sql.query("DROP TABLE routing_transitions");
    }
    node a{w.conninfo};
    flip_twice(w, a);
    CHECK(eventually([&] { return a.store->health().since_sweep < 5s; }));
    CHECK(a.failures.of("sweep") == 0);
}

TEST_CASE("what PostgreSQL warns of is one line of the log, and counted", "[db][log]") {
    world w;
    add_log_trigger(w, "RAISE EXCEPTION E'no\\nmore';");
    std::ostringstream lines;
    auto const before = spdlog::default_logger();
    spdlog::set_default_logger(std::make_shared<spdlog::logger>(
        "captured", std::make_shared<spdlog::sinks::ostream_sink_mt>(lines)));
    int warnings = 0;
    {
        node a{w.conninfo};
        a.got(a.acquire(7, a.token()), lease_outcome::acquired);
        warnings = a.failures.warnings;
    }
    spdlog::set_default_logger(before);
    CHECK(warnings >= 1);
    INFO(lines.str());
    CHECK(lines.str().find("database says severity=WARNING sqlstate=01000 message=\"presenced: 1 "
                           "flips are not in routing_transitions: no\\u000amore (P0001)\"\n") !=
          std::string::npos);
}

TEST_CASE("P1: somebody who holds the log stops no flip and no sweep", "[db][log]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; LOCK TABLE routing_transitions");
    flip_twice(w, a);
    w.sql.query("UPDATE agents SET routing_active = true WHERE id = 3");
    CHECK(eventually([&] { return !w.flag(3); }, 5s));
    CHECK(a.failures.of("sweep") == 0);
    holder.query("COMMIT");
    flip_twice(w, a);
    CHECK(logged(w, "agent_id = 7") == both_flips);
}

TEST_CASE("P1: a trigger on the log that takes its time costs the log row, not the flip",
          "[db][log]") {
    world w;
    add_log_trigger(w, "PERFORM pg_sleep(60); RETURN NEW;");
    node a{w.conninfo, "a", {}, 500ms};
    flip_twice(w, a);
    CHECK(a.is_up());
}

TEST_CASE("P9: a constraint on the log costs the rows that it refuses", "[db][log]") {
    world w;
    w.sql.query("ALTER TABLE routing_transitions ADD CHECK (agent_id <> 7)");
    CHECK(w.sql.value("SELECT outcomes FROM presenced_transition("
                      "'{acquire,acquire,acquire}', '{6,7,8}', '{x,y,z}', '{NULL,NULL,NULL}', "
                      "'{1,1,1}', 'n', clock_timestamp() + interval '1 s', false)") ==
          "{acquired,acquired,acquired}");
    CHECK(logged(w) == log_rows{{"6", "t", "subscribed"}, {"8", "t", "subscribed"}});
}

TEST_CASE("P2: a node drains although the log takes no row", "[db][log][stop]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 300; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 300; }));
    w.sql.query("ALTER TABLE routing_transitions ADD CHECK (active)");
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        a.release(static_cast<db::agent_id>(i % 9 + 1), tokens[i]);
    }
    CHECK(a.store->stop(std::chrono::steady_clock::now() + 10s) == 0);
    CHECK(w.rows() == 0);
    CHECK(w.sql.number("SELECT count(*) FROM agents WHERE routing_active") == 0);
}

TEST_CASE("each flip's notification names the schema that it is from", "[db][log]") {
    world w;
    w.sql.query("LISTEN presenced_routing");
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(7, a.token()), lease_outcome::acquired));
    std::vector<std::string> heard;
    REQUIRE(eventually([&] {
        w.sql.query("SELECT 1");
        heard = w.sql.notifications();
        return !heard.empty();
    }));
    CHECK(heard.front().find(R"(,"schema":"public"})") != std::string::npos);
}
