#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("P2: what a node leaves behind that is gone is swept away by another", "[db][sweep]") {
    world w{quick()};
    auto a = std::make_unique<node>(w.conninfo, "a", quick());
    node b{w.conninfo, "b", quick()};
    REQUIRE(a->got(a->acquire(7, a->token()), lease_outcome::acquired));
    a.reset(); // it never released
    CHECK(w.flag(7));
    CHECK(eventually([&] { return !w.flag(7) && w.rows() == 0; }));
    CHECK(w.sql.value("SELECT reason FROM routing_transitions ORDER BY id DESC LIMIT 1") ==
          "expired");
    CHECK(eventually([&] { return b.store->health().since_sweep < 5s; }));
}

TEST_CASE("P1: flags that disagree with the rows are put right within a sweep", "[db][sweep]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    REQUIRE(a.is_up());
    w.sql.query("UPDATE agents SET routing_active = true WHERE id = 3");
    CHECK(eventually([&] { return !w.flag(3); }, 5s));
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (4, 'by hand')");
    CHECK(eventually([&] { return w.flag(4); }, 5s));
    w.sql.query("DELETE FROM agent_subscriptions");
    CHECK(eventually([&] { return !w.flag(4); }, 5s));
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions WHERE reason <> 'reconciled'") ==
          0);
}

TEST_CASE("P9: the sweep passes over an agent that somebody holds", "[db][sweep]") {
    presence::settings often;
    often.sweep = 200ms;
    world w{often};
    node a{w.conninfo, "a", often};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agents WHERE id = 3 FOR NO KEY UPDATE");
    // Both need the sweep, and it comes to the one that is held first.
    w.sql.query(
        "INSERT INTO agent_subscriptions (agent_id, token) VALUES (3, 'held'), (4, 'free')");
    CHECK(eventually([&] { return w.flag(4); }, 5s));
    CHECK_FALSE(w.flag(3));
    CHECK(a.failures.of("sweep") == 0);
    holder.query("COMMIT");
    CHECK(eventually([&] { return w.flag(3); }, 5s));
}

TEST_CASE("P9: an agent to which nothing can be done does not stop the sweep", "[db][sweep]") {
    presence::settings often;
    often.sweep = 200ms;
    world w{often};
    sql_session holder{w.conninfo};
    holder.query("SELECT pg_advisory_lock(42)");
    auto const action = GENERATE("RAISE EXCEPTION 'no'", "PERFORM no_such_function()",
                                 "PERFORM pg_sleep(60)", "PERFORM pg_advisory_xact_lock(42)");
    w.sql.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "IF NEW.id = 3 THEN " +
                std::string{action} +
                "; END IF; RETURN NEW; END $$;"
                "CREATE TRIGGER refuse BEFORE UPDATE ON agents "
                "FOR EACH ROW EXECUTE FUNCTION refuse()");
    node a{w.conninfo, "a", often, 400ms}; // longer than it waits for a lock
    REQUIRE(a.is_up());
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) "
                "SELECT id, 'by hand ' || id FROM agents");
    CHECK(eventually(
        [&] { return w.sql.number("SELECT count(*) FROM agents WHERE routing_active") == 8; }));
    CHECK_FALSE(w.flag(3));
    CHECK(a.is_up());
}

TEST_CASE("old transitions are trimmed", "[db][sweep]") {
    world w{quick()};
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason, at) "
                "SELECT 1, true, 'subscribed', now() - interval '91 days' "
                "FROM generate_series(1, 20)");
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason) "
                "VALUES (1, true, 'subscribed')");
    node a{w.conninfo, "a", quick()};
    CHECK(
        eventually([&] { return w.sql.number("SELECT count(*) FROM routing_transitions") == 1; }));
}

TEST_CASE("old transitions are not trimmed while the clock may be wrong", "[db][sweep]") {
    world w;
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason, at) "
                "VALUES (1, true, 'subscribed', now() - interval '91 days')");
    auto const left_by_sweep = [&](std::string const& judge_until,
                                   std::string const& amnesty_until) {
        w.sql.query("UPDATE presence_clock SET ticked_at = now() - interval '1 minute', "
                    "judge_until = " +
                    judge_until + ", amnesty_until = " + amnesty_until);
        REQUIRE(w.sql.value("SELECT ran FROM presenced_sweep('a', 'boot', interval '0', "
                            "interval '90 days', 500)") == "t");
        return w.sql.number("SELECT count(*) FROM routing_transitions");
    };
    // A clock that is three months ahead now: before the first tick, and in the amnesty after it.
    CHECK(left_by_sweep("now() - interval '1 second'", "'-infinity'") == 1);
    CHECK(left_by_sweep("now() + interval '1 hour'", "now() + interval '30 seconds'") == 1);
    CHECK(left_by_sweep("now() + interval '1 hour'", "'-infinity'") == 0);
}

namespace {

// A database whose sweeps are asked for by hand, and in which leases may be judged.
struct sweep_world : world {
    sweep_world() {
        sql.query("SELECT presenced_tick('alive', 'boot', '0', '1 hour', '{}');"
                  "UPDATE presence_clock SET amnesty_until = '-infinity'");
        sweep(); // the end of the amnesty is behind it
    }
    std::string sweep(std::string const& every = "0 s", int limit = 500) {
        return sql.value("SELECT flips FROM presenced_sweep('alive', 'boot', '" + every +
                         "', '90 d', " + std::to_string(limit) + ")");
    }
    // One that does not walk: it only does what is in the queue.
    std::string sweep_queue() {
        sql.query("UPDATE nodes SET swept_at = NULL;"
                  "UPDATE sweep_state SET looked_at = clock_timestamp()");
        return sweep("1 hour");
    }
    // As the slow walks leave it in the middle of a large table: this sweep's slices begin behind
    // everything that there is.
    std::string sweep_elsewhere() {
        sql.query("UPDATE sweep_state SET next_page = 1000000, last_agent = 1000000");
        return sweep();
    }
    // What presenced's triggers do not see.
    void unseen(std::string const& statement) {
        sql.query("SET session_replication_role = replica;" + statement +
                  ";SET session_replication_role = origin");
    }
};

constexpr auto stale_row = "INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
                           "VALUES (7, 'stale', now() - interval '46 s');"
                           "UPDATE agents SET routing_active = true WHERE id = 7";

} // namespace

TEST_CASE("P1: what others change stands in the queue, so that a sweep need not look for it",
          "[db][sweep]") {
    sweep_world w;
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (4, 'by hand')");
    CHECK(w.sweep_queue() == "{\"4 on reconciled\"}");
    SECTION("a row is deleted") {
        w.sql.query("DELETE FROM agent_subscriptions");
        CHECK(w.sweep_queue() == "{\"4 off reconciled\"}");
    }
    SECTION("a row is made old") {
        w.sql.query("UPDATE agent_subscriptions SET last_seen_at = now() - interval '1 minute'");
        CHECK(w.sweep_queue() == "{\"4 off expired\"}");
    }
    SECTION("a row is as old as can be") {
        w.sql.query("UPDATE agent_subscriptions SET last_seen_at = '-infinity', "
                    "created_at = '-infinity'");
        CHECK(w.sweep_queue() == "{\"4 off expired\"}");
    }
    SECTION("the table is emptied") {
        w.sql.query("TRUNCATE agent_subscriptions");
        CHECK(w.sweep_queue() == "{\"4 off reconciled\"}");
    }
    SECTION("a flag is set") {
        w.sql.query("UPDATE agents SET routing_active = true WHERE id = 3");
        CHECK(w.sweep_queue() == "{\"3 off reconciled\"}");
    }
    SECTION("an agent is made with its flag on") {
        w.sql.query("INSERT INTO agents (id, owner_id, routing_active) VALUES (50, 1, true)");
        CHECK(w.sweep_queue() == "{\"50 off reconciled\"}");
    }
    SECTION("by a trigger of theirs, below a statement of presenced's") {
        w.sql.query("CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    "DELETE FROM agent_subscriptions WHERE agent_id = 4; RETURN NULL; END $$;"
                    "CREATE TRIGGER theirs AFTER UPDATE ON agents FOR EACH ROW "
                    "WHEN (NEW.id = 5) EXECUTE FUNCTION theirs()");
        w.sql.query("SELECT presenced_transition('{acquire}', '{5}', '{t}', '{NULL}', '{1}', 'n', "
                    "clock_timestamp() + interval '1 s', false)");
        CHECK(w.sweep_queue() == "{\"4 off reconciled\"}");
    }
}

TEST_CASE("P1: an agent that is changed without end holds up no other agent", "[db][sweep]") {
    sweep_world w;
    w.sql.query("INSERT INTO sweep_queue (agent_id) SELECT 3 FROM generate_series(1, 30000)");
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (4, 'by hand')");
    // Rounds follow at once as long as the database says so.
    std::string flips;
    int rounds = 0;
    for (std::string next = "00:00:00"; next == "00:00:00" && rounds < 20; ++rounds) {
        auto const swept = w.sql.query("SELECT flips, next_in FROM presenced_sweep('alive', "
                                       "'boot', '0 s', '90 d', 500)");
        flips += swept.at(0).at(0);
        next = flips.find("4 on") == flips.npos ? swept.at(0).at(1) : "";
    }
    CHECK(flips.find("4 on reconciled") != flips.npos);
}

TEST_CASE("P9: whoever holds the entries of the queue holds up no sweep", "[db][sweep]") {
    sweep_world w;
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (4, 'by hand')");
    sql_session other{w.conninfo};
    other.query("BEGIN");
    other.query("DELETE FROM sweep_queue");
    w.sql.query("SET lock_timeout = '200ms'");
    CHECK(w.sweep_queue() == "{\"4 on reconciled\"}");
    other.query("ROLLBACK");
}

TEST_CASE("what presenced changes does not go through the queue", "[db][sweep]") {
    sweep_world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    REQUIRE(a.got(a.renew(7, token), lease_outcome::renewed));
    REQUIRE(a.got(a.release(7, token), lease_outcome::released));
    CHECK(w.sql.number("SELECT count(*) FROM sweep_queue") == 0);
}

TEST_CASE("P2: the leases of a node that died are walked for at once, however large the table",
          "[db][sweep]") {
    sweep_world w;
    w.unseen(stale_row);
    CHECK(w.sweep_elsewhere() == "{}"); // that is what the slow walk is like
    SECTION("its ticks stopped") {
        w.sql.query("INSERT INTO nodes (node, boot_id, ticked_at) "
                    "VALUES ('dead', 'boot', now() - interval '45 s')");
        CHECK(w.sweep_elsewhere() == "{\"7 off expired\"}");
    }
    SECTION("its ticks stopped, and its older leases run out") {
        w.sql.query("INSERT INTO nodes (node, boot_id, ticked_at) "
                    "VALUES ('dead', 'boot', now() - interval '35 s')");
        CHECK(w.sweep_elsewhere() == "{\"7 off expired\"}");
    }
    SECTION("it ended with leases left") {
        w.sql.query("INSERT INTO nodes (node, boot_id) VALUES ('dead', 'boot');"
                    "DELETE FROM nodes WHERE node = 'dead'");
        CHECK(w.sweep_elsewhere() == "{}"); // they are not due yet
        w.sql.query("UPDATE sweep_queue SET due = clock_timestamp()");
        CHECK(w.sweep_elsewhere() == "{\"7 off expired\"}");
    }
    SECTION("an amnesty ended") {
        w.sql.query("UPDATE presence_clock SET amnesty_until = clock_timestamp()");
        CHECK(w.sweep_elsewhere() == "{\"7 off expired\"}");
    }
    CHECK(w.rows() == 0);
}

TEST_CASE("P2: a sweep comes at the moment in which the leases of a dead node have run out",
          "[db][sweep]") {
    sweep_world w;
    w.sql.query("UPDATE nodes SET swept_at = NULL; INSERT INTO nodes (node, boot_id, ticked_at) "
                "VALUES ('dead', 'boot', clock_timestamp() - interval '44 s')");
    auto const sweep = [&](std::string const& what) {
        return w.sql.value("SELECT " + what +
                           " FROM presenced_sweep('alive', 'boot', '5 s', '90 d', 500)");
    };
    CHECK(sweep("ran AND next_in <= interval '1 s'") == "t");
    CHECK(sweep("NOT ran AND next_in <= interval '1 s'") == "t");
    w.unseen("INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
             "VALUES (7, 'stale', clock_timestamp() - interval '44.9 s');"
             "UPDATE agents SET routing_active = true WHERE id = 7");
    CHECK(eventually([&] { return sweep("flips") == "{\"7 off expired\"}"; }, 3s));
    CHECK(sweep("NOT ran AND next_in > interval '3 s'") == "t");
}

TEST_CASE("what no trigger saw is found by the slow walks", "[db][sweep]") {
    sweep_world w;
    w.unseen(stale_row);
    w.unseen("UPDATE agents SET routing_active = true WHERE id = 3");
    CHECK(w.sweep_elsewhere() == "{}");
    w.sweep();
    CHECK_FALSE(w.flag(3));
    CHECK_FALSE(w.flag(7));
}

TEST_CASE("P9: a sweep waits for nobody who holds its state, and does without", "[db][sweep]") {
    sweep_world w;
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT FROM sweep_state FOR UPDATE");
    w.unseen(stale_row);
    w.sql.query("SET lock_timeout = '50ms'");
    CHECK(w.sweep() == "{\"7 off expired\"}");
    holder.query("COMMIT");
    w.sql.query("DELETE FROM sweep_state");
    w.unseen(stale_row);
    CHECK(w.sweep() == "{\"7 off expired\"}");
}

TEST_CASE("a round of one agent keeps what it found before it puts anything at stake",
          "[db][sweep]") {
    sweep_world w;
    w.sql.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'no'; END $$;"
                "CREATE TRIGGER refuse BEFORE UPDATE ON agents FOR EACH ROW WHEN (NEW.id = 7) "
                "EXECUTE FUNCTION refuse()");
    w.unseen(stale_row);
    CHECK(w.sweep("0 s", 1) == "{}");
    CHECK(w.sql.value("SELECT agent_id FROM sweep_queue") == "7");
}
