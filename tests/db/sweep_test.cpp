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
