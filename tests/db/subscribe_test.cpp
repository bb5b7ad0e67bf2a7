#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("subscribe: one row, flag on, one transition, one notification", "[db][subscribe]") {
    world w;
    w.sql.query("LISTEN presenced_routing");
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token, 1, "a \"session\", {x}\\"), lease_outcome::acquired));
    CHECK(w.flag(7));
    CHECK(w.sql.query("SELECT agent_id, session_id, node FROM agent_subscriptions") ==
          std::vector<std::vector<std::string>>{{"7", "a \"session\", {x}\\", "a"}});
    CHECK(w.sql.value("SELECT token FROM agent_subscriptions") == token.view());

    auto const second = a.token();
    REQUIRE(a.got(a.acquire(7, second), lease_outcome::acquired));
    REQUIRE(a.got(a.release(7, token), lease_outcome::released));
    CHECK(w.flag(7));
    REQUIRE(a.got(a.release(7, second, release_reason::disconnected), lease_outcome::released));
    CHECK_FALSE(w.flag(7));
    CHECK(w.rows() == 0);

    CHECK(w.sql.query("SELECT agent_id, active, reason FROM routing_transitions ORDER BY id") ==
          std::vector<std::vector<std::string>>{{"7", "t", "subscribed"},
                                                {"7", "f", "disconnected"}});
    std::vector<std::string> heard;
    CHECK(eventually([&] {
        for (auto& payload : w.sql.notifications()) {
            heard.push_back(std::move(payload));
        }
        return heard.size() >= 2;
    }));
    REQUIRE(heard.size() == 2);
    CHECK(heard[0].find(R"("agent_id":7,"active":true,"reason":"subscribed")") !=
          std::string::npos);
    CHECK(heard[1].find(R"("agent_id":7,"active":false,"reason":"disconnected")") !=
          std::string::npos);
}

TEST_CASE("subscribe: an agent of somebody else's, or none, is refused", "[db][subscribe]") {
    world w;
    node a{w.conninfo};
    CHECK(a.got(a.acquire(7, a.token(), 2), lease_outcome::refused));
    CHECK(a.got(a.acquire(12'345, a.token()), lease_outcome::refused));
    CHECK(w.rows() == 0);
    CHECK_FALSE(w.flag(7));
}

TEST_CASE("subscribe: text that PostgreSQL cannot keep is refused and harms nobody",
          "[db][subscribe]") {
    world w;
    node a{w.conninfo};
    auto const bad = a.acquire(1, a.token(), 1, "not UTF-8: \xff");
    auto const zero = a.acquire(1, a.token(), 1, std::string{"zero \0 byte", 11});
    auto const good = a.acquire(1, a.token(), 1, "gr\xc3\xbc\xc3\x9f");
    CHECK(a.got(bad, lease_outcome::refused));
    CHECK(a.got(zero, lease_outcome::refused));
    CHECK(a.got(good, lease_outcome::acquired));
    CHECK(w.rows() == 1);
}

TEST_CASE("subscribe: stale rows of the agent are reaped on the way", "[db][subscribe]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    w.sql.query("UPDATE presence_clock SET amnesty_until = '-infinity'");
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
                "VALUES (7, 'old', now() - interval '46 seconds'), (7, 'young', now())");
    REQUIRE(a.got(a.acquire(7, a.token()), lease_outcome::acquired));
    CHECK(w.rows("token = 'old'") == 0);
    CHECK(w.rows() == 2);
}

TEST_CASE("unsubscribe: a row that is gone already still sets the flag right",
          "[db][unsubscribe]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    w.sql.query("DELETE FROM agent_subscriptions");
    CHECK(w.flag(7));
    REQUIRE(a.got(a.release(7, token), lease_outcome::released));
    CHECK_FALSE(w.flag(7));
    CHECK(w.sql.value("SELECT reason FROM routing_transitions ORDER BY id DESC LIMIT 1") ==
          "reconciled");
    CHECK(a.got(a.release(12'345, a.token()), lease_outcome::released));
}

TEST_CASE("a burst of subscribes goes out in batches and all are answered once",
          "[db][subscribe]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 2'000; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 2'000; }));
    CHECK(w.rows() == 2'000);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        a.release(static_cast<db::agent_id>(i % 9 + 1), tokens[i]);
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::released) == 2'000; }));
    CHECK(w.rows() == 0);
    CHECK(w.sql.number("SELECT count(*) FROM agents WHERE routing_active") == 0);
    CHECK(a.box.answered() == 4'000);
}

TEST_CASE("a request that arrives late does nothing", "[db][subscribe]") {
    world w;
    CHECK(w.sql.value("SELECT outcomes FROM presenced_transition('{acquire}', '{7}', '{t}', "
                      "'{NULL}', '{1}', 'n', clock_timestamp() - interval '1 ms', false)") ==
          "{late}");
    CHECK(w.rows() == 0);
    CHECK_FALSE(w.flag(7));
}

TEST_CASE("stop: releases are finished first, and the node leaves the list", "[db][stop]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 300; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 300; }));
    REQUIRE(eventually([&] { return w.sql.number("SELECT count(*) FROM nodes") == 1; }));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        a.release(static_cast<db::agent_id>(i % 9 + 1), tokens[i]);
    }
    CHECK(a.store->stop(std::chrono::steady_clock::now() + 10s) == 0);
    CHECK(w.rows() == 0);
    CHECK(w.sql.number("SELECT count(*) FROM nodes") == 0);
}

TEST_CASE("health: a database that cannot be reached is named without its password",
          "[db][health]") {
    node a{"host=127.0.0.1 port=1 user=someone password=hunter2 dbname=x"};
    REQUIRE(eventually([&] {
        return !a.store->health().problem.empty() &&
               a.store->health().problem.find("yet") == std::string::npos;
    }));
    auto const h = a.store->health();
    CHECK_FALSE(h.reachable);
    CHECK_FALSE(h.writable);
    CHECK(h.since_tick == std::chrono::milliseconds::max());
    CHECK(h.problem.find("hunter2") == std::string::npos);
    CHECK(h.problem.find('\n') == std::string::npos);
    node b{"postgresql://someone:hunter2@[broken"};
    REQUIRE(eventually([&] {
        return !b.store->health().problem.empty() &&
               b.store->health().problem.find("yet") == std::string::npos;
    }));
    CHECK(b.store->health().problem.find("hunter2") == std::string::npos);
}
