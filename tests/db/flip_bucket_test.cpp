#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

// A world in which buckets of flips are as they are outside of tests.
struct bucket_world : world {
    bucket_world() { sql.query("UPDATE presence_clock SET flip_every = '1 minute'"); }

    // The outcomes of one call, "{acquired}".
    std::string call(std::string const& kind, db::agent_id agent, std::string const& token,
                     bool waits = false) {
        return sql.value("SELECT outcomes FROM presenced_transition('{" + kind + "}', '{" +
                         std::to_string(agent) + "}', '{" + token +
                         "}', '{NULL}', '{1}', 'n', clock_timestamp() + interval '1 s', " +
                         (waits ? "true" : "false") + ")");
    }
    // Switches an agent on and off until it may not be switched on; how often it could be.
    int toggle(db::agent_id agent, int at_most) {
        for (int n = 0; n < at_most; ++n) {
            if (call("acquire", agent, "toggle") == "{busy}") {
                return n;
            }
            CHECK(call("disconnected", agent, "toggle") == "{released}");
        }
        return at_most;
    }
    long logged(db::agent_id agent) {
        return sql.number("SELECT count(*) FROM routing_transitions WHERE agent_id = " +
                          std::to_string(agent));
    }
    void let_minutes_pass(int minutes) {
        sql.query("UPDATE agents SET flips_paid_until = flips_paid_until - interval '" +
                  std::to_string(minutes) + " minutes'");
    }
};

} // namespace

TEST_CASE("one agent that is toggled as fast as it goes writes 120 rows and then one a minute",
          "[db][flip_bucket]") {
    bucket_world w;
    CHECK(w.toggle(7, 1'000) == 60);
    CHECK(w.logged(7) == 120);
    w.let_minutes_pass(1);
    CHECK(w.call("acquire", 7, "t") == "{busy}"); // it could not pay for the way back
    w.let_minutes_pass(9);
    CHECK(w.toggle(7, 1'000) == 5);
    CHECK(w.logged(7) == 130);
    w.let_minutes_pass(10'000);
    CHECK(w.toggle(7, 1'000) == 60); // no more than a bucket is ever saved up
}

TEST_CASE("an agent whose bucket is empty delays nobody, and neither those who leave",
          "[db][flip_bucket]") {
    bucket_world w;
    REQUIRE(w.toggle(7, 59) == 59);
    REQUIRE(w.call("acquire", 7, "stays") == "{acquired}"); // the last one
    SECTION("others come to an agent that is on") {
        CHECK(w.call("acquire", 7, "second") == "{acquired}");
        CHECK(w.call("disconnected", 7, "stays") == "{released}");
        CHECK(w.call("acquire", 7, "third") == "{acquired}");
    }
    SECTION("who leaves does not wait, and who comes then does") {
        CHECK(w.call("disconnected", 7, "stays") == "{released}");
        CHECK_FALSE(w.flag(7));
        w.sql.query("SET lock_timeout = '50ms'");
        CHECK(w.call("acquire", 7, "second") == "{busy}");
        CHECK(w.call("acquire", 7, "second", true) == "{busy}");
        CHECK(w.rows() == 0);
        CHECK(w.call("disconnected", 7, "second") == "{gone}");
    }
    SECTION("other agents in the same batch do not wait") {
        CHECK(w.call("disconnected", 7, "stays") == "{released}");
        CHECK(w.sql.value("SELECT outcomes FROM presenced_transition("
                          "'{acquire,acquire,disconnected,acquire}', '{7,8,7,7}', '{x,y,x,z}', "
                          "'{NULL,NULL,NULL,NULL}', '{1,1,1,2}', 'n', "
                          "clock_timestamp() + interval '1 s', false)") ==
              "{busy,acquired,busy,refused}");
    }
}

TEST_CASE("P1: a row by hand counts although the bucket is empty", "[db][flip_bucket]") {
    bucket_world w;
    REQUIRE(w.toggle(7, 1'000) == 60);
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (7, 'by hand')");
    w.sql.query("SELECT presenced_sweep('n', 'b', '0 s', '90 d', 500)");
    CHECK(w.flag(7));
}

TEST_CASE("P8: a clock that was ahead keeps no agent off", "[db][flip_bucket]") {
    bucket_world w;
    REQUIRE(w.toggle(7, 1'000) == 60);
    w.let_minutes_pass(-1'000);
    CHECK(w.call("acquire", 7, "t") == "{acquired}");
    w.sql.query("UPDATE agents SET flips_paid_until = 'infinity'");
    CHECK(w.call("acquire", 8, "u") == "{acquired}");
}

TEST_CASE("a subscribe waits for its agent's bucket", "[db][flip_bucket]") {
    bucket_world w;
    REQUIRE(w.toggle(7, 1'000) == 60);
    node a{w.conninfo};
    auto const waiting = a.acquire(7, a.token());
    auto const other = a.acquire(8, a.token());
    CHECK(a.got(other, lease_outcome::acquired));
    CHECK(a.box.outcomes(waiting).empty());
    w.let_minutes_pass(2);
    CHECK(a.got(waiting, lease_outcome::acquired));
    CHECK(w.flag(7));
}
