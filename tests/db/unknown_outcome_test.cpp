// Batches that are cut in the middle: what was asked for is done once or undone, and the answer
// says which.
#include "tests/db/node.hpp"
#include "tests/db/waiting_commit.hpp"

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("P6: a backend killed in the middle of a batch: one row after the retry", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    // The batch stops at its last step, with everything written and nothing committed.
    sql_session holder{w.conninfo};
    holder.query("BEGIN; LOCK TABLE routing_transitions IN ACCESS EXCLUSIVE MODE");
    auto const key = a.acquire(3, a.token());
    auto const in_batch = "state = 'active' AND wait_event_type = 'Lock' AND "
                          "query LIKE '%presenced_transition(%'";
    REQUIRE(eventually([&] { return w.backends(in_batch).size() == 1; }));
    w.sql.query("SELECT pg_terminate_backend(" + std::to_string(w.backends(in_batch).at(0)) + ")");
    holder.query("COMMIT");
    CHECK(a.got(key, lease_outcome::acquired));
    CHECK(w.rows() == 1);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions") == 1);
}

TEST_CASE("P6: a commit whose outcome is unknown is one row after the retry", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    waiting_commit commit{w};
    auto const key = a.acquire(3, a.token());
    auto const first = commit.backend();
    w.sql.query("SELECT pg_terminate_backend(" + std::to_string(first) + ")");
    REQUIRE(eventually([&] { return w.rows("agent_id = 3") == 1; }));
    // The retry finds the row and waits for the standby again.
    CHECK(eventually([&] { return commit.backend() != first; }));
    commit.end();
    CHECK(a.got(key, lease_outcome::acquired));
    CHECK(w.rows("agent_id = 3") == 1);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions WHERE agent_id = 3") == 1);
}

TEST_CASE("abandon: an acquire whose outcome is unknown is undone before it is answered",
          "[db][abandon]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    auto const token = a.token();
    std::uint64_t key = 0;
    {
        waiting_commit commit{w};
        key = a.acquire(3, token);
        auto const first = commit.backend();
        a.store->abandon(3, token); // in flight
        w.sql.query("SELECT pg_terminate_backend(" + std::to_string(first) + ")");
        CHECK(eventually([&] { return commit.backend() != first; }));
        CHECK(a.box.outcomes(key).empty());
    }
    CHECK(a.got(key, lease_outcome::abandoned));
    CHECK(w.rows("agent_id = 3") == 0);
    CHECK_FALSE(w.flag(3));
}

TEST_CASE("abandon: in flight, it is answered by its outcome", "[db][abandon]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; LOCK TABLE routing_transitions IN ACCESS EXCLUSIVE MODE");
    auto const token = a.token();
    auto const key = a.acquire(3, token);
    REQUIRE(eventually([&] {
        return w.backends("wait_event_type = 'Lock' AND query LIKE '%presenced_transition(%'")
                   .size() == 1;
    }));
    a.store->abandon(3, token);
    a.store->abandon(3, token);
    holder.query("COMMIT");
    REQUIRE(eventually([&] { return !a.box.outcomes(key).empty(); }));
    // Had the lock timed out first, nothing was done, and that is what the answer says.
    auto const outcomes = a.box.outcomes(key);
    REQUIRE(outcomes.size() == 1);
    if (outcomes[0] == lease_outcome::acquired) {
        CHECK(a.got(a.release(3, token), lease_outcome::released));
    } else {
        CHECK(outcomes[0] == lease_outcome::abandoned);
    }
    CHECK(w.rows() == 0);
    CHECK_FALSE(w.flag(3));
    a.store->abandon(3, token); // long answered: nothing
}
