// The functions of the schema answer something that this binary does not understand: those of a
// newer schema, or somebody's own. One request's answer delays that request, and nobody else's.
#include "tests/db/altered_function.hpp"
#include "tests/support/eventually.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

std::string for_agent_3(std::string const& change) {
    return "IF 3 = ANY (agent_ids) THEN " + change + "; END IF";
}

} // namespace

TEST_CASE("P9: an outcome that this binary does not know delays its own request only",
          "[db][fault]") {
    world w;
    altered_function theirs{w, "presenced_transition",
                            "outcomes := ARRAY(SELECT CASE WHEN o.id = 3 THEN 'promised' "
                            "ELSE o.outcome END FROM unnest(outcomes, agent_ids) WITH ORDINALITY "
                            "AS o (outcome, id, n) ORDER BY o.n)"};
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const puzzling = a.acquire(3, a.token());
    REQUIRE(eventually([&] { return a.failures.taken_by("transition") > 0; }));
    // 3 and 5 share a lane.
    for (int i = 0; i < 50; ++i) {
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    // Asked again after a pause, and not at full speed.
    CHECK(always([&] { return a.failures.taken_by("transition") < 60; }, 500ms));
    CHECK(a.box.outcomes(puzzling).empty());
    CHECK(a.is_up());
    theirs.end();
    CHECK(a.got(puzzling, lease_outcome::acquired, 20s));
    CHECK(w.rows("agent_id = 3") == 1);
}

TEST_CASE("P9: an answer that this binary cannot read delays its own requests only",
          "[db][fault]") {
    auto const change = GENERATE(
        std::string{"outcomes := outcomes || 'acquired'::text"}, "outcomes := '{}'",
        "outcomes := NULL", "outcomes := array_fill(NULL::text, ARRAY[cardinality(outcomes)])",
        "outcomes := ARRAY[outcomes, outcomes]", "at := NULL", "at := 'infinity'",
        "flips := ARRAY['nonsense']", "flips := ARRAY['', '3 on']", "flips := ARRAY[NULL::text]",
        "flips := ARRAY['3 perhaps subscribed']", "flips := ARRAY[ARRAY['3 on subscribed']]");
    INFO(change);
    world w;
    altered_function theirs{w, "presenced_transition", for_agent_3(change)};
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const puzzling = a.acquire(3, a.token());
    for (int i = 0; i < 20; ++i) {
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    CHECK(always([&] { return a.failures.taken_by("transition") < 40; }, 300ms));
    theirs.end();
    CHECK(a.got(puzzling, lease_outcome::acquired, 20s));
    CHECK(w.rows("agent_id = 3") == 1);
    CHECK(a.is_up());
}

TEST_CASE("a renewal's answer that this binary cannot read loses no lease", "[db][fault]") {
    auto const change = GENERATE(std::string{"at := NULL"}, "at := 'infinity'", "missing := NULL",
                                 "held := NULL", "missing := ARRAY[ARRAY['x', 'y']]",
                                 "held := ARRAY['a stranger''s']", "ticked_at := 'infinity'",
                                 "missing := tokens || 'a stranger''s'::text; held := tokens");
    INFO(change);
    world w;
    altered_function theirs{w, "presenced_renew",
                            "IF 7 = ANY (agent_ids) THEN " + change + "; END IF"};
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    auto const key = a.renew(7, token);
    auto const before = a.failures.called("renew");
    CHECK(always([&] { return a.failures.called("renew") - before < 20; }, 300ms));
    theirs.end();
    CHECK(eventually([&] { return !a.box.outcomes(key).empty(); }));
    CHECK(a.got(a.renew(7, token), lease_outcome::renewed));
    CHECK(w.rows() == 1);
    CHECK(a.is_up());
}

TEST_CASE("a sweep's answer that this binary cannot read is swept again", "[db][fault]") {
    auto const change = GENERATE(std::string{"flips := ARRAY['nonsense']"}, "next_in := NULL",
                                 "reaped := -1", "flips := ARRAY[ARRAY['3 on subscribed']]");
    INFO(change);
    world w{quick()};
    altered_function theirs{w, "presenced_sweep", change};
    node a{w.conninfo, "a", quick()};
    REQUIRE(a.is_up());
    REQUIRE(eventually([&] { return a.failures.called("sweep") > 1; }));
    // Not at full speed.
    auto const before = a.failures.called("sweep");
    CHECK(always([&] { return a.failures.called("sweep") - before < 40; }, 300ms));
    theirs.end();
    w.sql.query("UPDATE agents SET routing_active = true WHERE id = 5");
    CHECK(eventually([&] { return !w.flag(5); }));
}
