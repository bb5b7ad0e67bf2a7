// Commits that take longer than a call may: a synchronous standby is slow, or many commits wait in
// line. statement_timeout does not cover a commit; this side hangs up a second after it.
#include "tests/db/waiting_commit.hpp"

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("commits that wait longer than a call may: all is done in one more call", "[db][fault]") {
    world w;
    node a{w.conninfo, "a", {}, 500ms};
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    std::vector<std::uint64_t> keys;
    int calls = 0;
    {
        waiting_commit commit{w};
        for (int i = 0; i < 300; ++i) {
            keys.push_back(a.acquire(i % 9 + 1, a.token()));
        }
        // Each of the two lanes has hung up, connected again, and hung up again.
        REQUIRE(eventually([&] { return a.failures.of("transition") >= 4; }, 20s));
        calls = a.failures.called("transition") - a.failures.of("transition");
    }
    for (auto const key : keys) {
        REQUIRE(a.got(key, lease_outcome::acquired));
    }
    // No batch got smaller for it, and nobody became a suspect.
    CHECK(a.failures.called("transition") - a.failures.of("transition") - calls <= 4);
    CHECK(a.failures.taken_by("busy") == 0);
    CHECK(w.rows() == 301);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions") == 9);
}
