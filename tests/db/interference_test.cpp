// What others do to the database: locks they hold, triggers they add, rights they take away. Whom
// it does not concern is not delayed (P9).
#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

std::string quoted(lease_token const& token) {
    return "'" + std::string{token.view()} + "'";
}

// While `push` asks for them, these agents are held, so that what is asked for gathers in the busy
// lane and leaves it together.
template <class Push>
void holding_agents(world& w, node& a, std::string const& agents, Push push) {
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT FROM agents WHERE id IN (" + agents + ") FOR UPDATE");
    auto const before = a.box.answered();
    push();
    auto const busy = [&] {
        std::size_t depth = 0;
        for (auto const& q : a.store->health().queues) {
            depth += q.lane == std::string_view{"transition"} ? q.depth : 0;
        }
        return depth == 0;
    };
    REQUIRE(eventually(busy));
    REQUIRE(a.box.answered() == before);
    holder.query("COMMIT");
}

} // namespace

TEST_CASE("P9: an agent held by somebody else delays its own subscribes only", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agents WHERE id = 3 FOR UPDATE");
    auto const stuck = a.acquire(3, a.token());
    auto const taken_back = a.token();
    auto const unwanted = a.acquire(3, taken_back);
    for (int i = 0; i < 60; ++i) {
        REQUIRE(a.got(a.acquire(i % 2 == 0 ? 5 : 6, a.token()), lease_outcome::acquired));
    }
    CHECK(a.box.outcomes(stuck).empty());
    // The lanes passed over the two that are stuck, once, and waited for nobody.
    CHECK(a.failures.taken_by("transition") == 62);
    // Nothing of it was sent in earnest: it can be taken back while its agent is stuck.
    a.store->abandon(3, taken_back);
    CHECK(a.got(unwanted, lease_outcome::abandoned));
    holder.query("COMMIT");
    CHECK(a.got(stuck, lease_outcome::acquired, 3s));
    CHECK(w.rows("agent_id = 3") == 1);
}

TEST_CASE("P9: a row held by somebody else delays its own release only", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    auto const other = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    REQUIRE(a.got(a.acquire(3, other), lease_outcome::acquired));
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agent_subscriptions WHERE token = " + quoted(token) +
                 " FOR UPDATE");
    auto const stuck = a.release(3, token);
    CHECK(a.got(a.release(3, other), lease_outcome::released));
    for (int i = 0; i < 20; ++i) {
        REQUIRE(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    }
    CHECK(a.box.outcomes(stuck).empty());
    holder.query("COMMIT");
    CHECK(a.got(stuck, lease_outcome::released, 3s));
    CHECK(w.rows() == 20);
}

TEST_CASE("P9: a poisoned element fails alone, and is refused", "[db][fault]") {
    world w;
    w.sql.query("ALTER TABLE agent_subscriptions ADD CHECK (session_id <> 'poison')");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    std::vector<std::uint64_t> good;
    std::vector<std::uint64_t> bad;
    for (int i = 0; i < 200; ++i) {
        bool const poison = i % 50 == 7;
        auto const key = a.acquire(i % 9 + 1, a.token(), 1, poison ? "poison" : "fine");
        (poison ? bad : good).push_back(key);
    }
    for (auto const key : bad) {
        CHECK(a.got(key, lease_outcome::refused));
    }
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(w.rows() == static_cast<long>(good.size()));
    CHECK(a.is_up());
}

TEST_CASE("a release that the database refuses is kept and done when it can be", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.sql.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END $$;"
                "CREATE TRIGGER refuse BEFORE DELETE ON agent_subscriptions "
                "FOR EACH ROW EXECUTE FUNCTION refuse()");
    auto const key = a.release(3, token);
    CHECK(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    CHECK(a.box.outcomes(key).empty());
    w.sql.query("DROP TRIGGER refuse ON agent_subscriptions");
    CHECK(a.got(key, lease_outcome::released));
    CHECK(w.rows() == 1);
}

TEST_CASE("P9: what a trigger refuses stays alone, and costs nobody the connection",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.session_id = 'poison'", "RAISE EXCEPTION 'no'");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const sessions = w.backends("true");
    auto const token = a.token();
    auto const poison = a.acquire(4, token, 1, "poison");
    // It was refused alone before, so whatever comes now never shares a batch with it.
    REQUIRE(eventually([&] { return a.failures.of("transition") > 0; }));
    std::vector<std::uint64_t> good;
    for (int i = 0; i < 500; ++i) {
        good.push_back(a.acquire(i % 2 == 0 ? 4 : 6, a.token()));
    }
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(a.failures.of("transition") < 10);
    CHECK(a.box.outcomes(poison).empty());
    CHECK(w.backends("true") == sessions);
    CHECK(a.is_up());

    // In one batch with others it costs a few calls.
    holding_agents(w, a, "4, 6", [&] {
        good.clear();
        for (int i = 0; i < 100; ++i) {
            good.push_back(a.acquire(4, a.token(), 1, i == 50 ? "poison" : "fine"));
        }
    });
    for (std::size_t i = 0; i < good.size(); ++i) {
        if (i != 50) {
            CHECK(a.got(good[i], lease_outcome::acquired));
        }
    }
    CHECK(a.box.outcomes(good[50]).empty());
    a.store->abandon(4, token);
    CHECK(a.got(poison, lease_outcome::abandoned));
    w.drop_trigger();
    CHECK(a.got(good[50], lease_outcome::acquired));
    CHECK(w.rows() == 600);
}

TEST_CASE("P9: an agent whose calls take too long delays the others once, and then only itself",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_sleep(60)");
    node a{w.conninfo, "a", {}, 500ms};
    REQUIRE(a.is_up());
    // 3 and 5 share a lane.
    auto const began = std::chrono::steady_clock::now();
    std::vector<std::uint64_t> stuck{a.acquire(3, a.token())};
    REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    for (int i = 0; i < 30; ++i) {
        stuck.push_back(a.acquire(3, a.token()));
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    // Once in the lane, once in the busy lane, and then every tenth of the time.
    CHECK(a.failures.of("transition") <= 2 + (std::chrono::steady_clock::now() - began) / 5s);
    for (auto const key : stuck) {
        CHECK(a.box.outcomes(key).empty());
    }
    CHECK(a.is_up());
    w.drop_trigger();
    for (auto const key : stuck) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    // It is trusted again.
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    CHECK(w.rows() == 63);
}

TEST_CASE("P9: a trigger that waits for a lock delays its agent only", "[db][fault]") {
    world w;
    sql_session holder{w.conninfo};
    holder.query("SELECT pg_advisory_lock(42)");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_advisory_xact_lock(42)");
    // 3 and 5 share a lane.
    std::vector<std::uint64_t> stuck{a.acquire(3, a.token())};
    for (int i = 0; i < 30; ++i) {
        stuck.push_back(a.acquire(3, a.token()));
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    // In one batch of the busy lane, where an agent that is held for a moment sends them.
    std::vector<std::uint64_t> good;
    holding_agents(w, a, "3, 5, 7", [&] {
        for (int i = 0; i < 100; ++i) {
            (i % 4 == 0 ? stuck : good)
                .push_back(a.acquire(i % 4 == 0 ? 3 : 5 + i % 2 * 2, a.token()));
        }
    });
    for (auto const key : good) {
        REQUIRE(a.got(key, lease_outcome::acquired));
    }
    for (auto const key : stuck) {
        CHECK(a.box.outcomes(key).empty());
    }
    w.drop_trigger();
    for (auto const key : stuck) {
        CHECK(a.got(key, lease_outcome::acquired, 60s));
    }
}

TEST_CASE("P9: a broken trigger delays the one request that it breaks on", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const sessions = w.backends("true").size();
    w.add_trigger("INSERT", "NEW.session_id = 'poison'", "PERFORM no_such_function()");
    std::vector<std::uint64_t> poison;
    std::vector<std::uint64_t> good;
    for (int round = 0; round < 3; ++round) {
        // Its agent's and others', in one batch with it and without.
        holding_agents(w, a, "3, 5", [&] {
            for (int i = 0; i < 20; ++i) {
                if (i % 5 == 0) {
                    poison.push_back(a.acquire(3, a.token(), 1, "poison"));
                }
                good.push_back(a.acquire(3 + i % 2 * 2, a.token()));
            }
        });
        for (auto const key : good) {
            REQUIRE(a.got(key, lease_outcome::acquired));
        }
    }
    CHECK(a.failures.outages() == 0);
    CHECK(eventually([&] { return w.backends("true").size() == sessions; }));
    w.drop_trigger();
    for (auto const key : poison) {
        CHECK(a.got(key, lease_outcome::acquired, 30s));
    }
}

TEST_CASE("rights that are taken away and given back: all is done soon after", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.sql.query("REVOKE INSERT, DELETE, UPDATE ON agent_subscriptions FROM presenced_server");
    auto const release = a.release(3, token);
    std::vector<std::uint64_t> kept;
    for (int i = 0; i < 50; ++i) {
        kept.push_back(a.acquire(5 + i % 4, a.token()));
    }
    REQUIRE(eventually([&] { return a.failures.of("transition") > 20; }));
    CHECK(eventually([&] { return a.failures.outages() > 0; })); // ticks speak of all
    w.sql.query("GRANT INSERT, DELETE, UPDATE ON agent_subscriptions TO presenced_server");
    // Who comes now does not wait for those who failed.
    CHECK(a.got(a.acquire(9, a.token()), lease_outcome::acquired));
    CHECK(a.got(release, lease_outcome::released, 30s));
    for (auto const key : kept) {
        CHECK(a.got(key, lease_outcome::acquired, 30s));
    }
    CHECK(a.is_up());
}

TEST_CASE("P9: a batch in which one agent takes too long: the others follow at once",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_sleep(60)");
    node a{w.conninfo, "a", {}, 500ms};
    REQUIRE(a.is_up());
    auto const began = std::chrono::steady_clock::now();
    std::vector<std::uint64_t> good;
    std::uint64_t stuck = 0;
    holding_agents(w, a, "1, 3, 5, 7, 9", [&] {
        stuck = a.acquire(3, a.token());
        for (int i = 0; i < 100; ++i) {
            good.push_back(a.acquire(5 + i % 3 * 2, a.token()));
        }
    });
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(a.failures.of("transition") <= 3 + (std::chrono::steady_clock::now() - began) / 5s);
    CHECK(a.box.outcomes(stuck).empty());
}
