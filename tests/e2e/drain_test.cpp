// SIGTERM under many sessions. PRESENCED_E2E_DRAIN_SESSIONS: how many (1,200, for two shards).
#include "tests/support/catch.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <csignal>
#include <iostream>

using namespace presenced::tests;

TEST_CASE("SIGTERM tells every session to come back, releases every row and exits 0") {
    auto const sessions = static_cast<std::size_t>(scale("PRESENCED_E2E_DRAIN_SESSIONS", 1'200));
    REQUIRE(raise_descriptor_limit() > sessions + 100);
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    auto const agents = w.add_agents(sessions / 10 + 1);
    cable_loop loop;
    swarm all{loop, w.client_options(*n), agents, sessions};
    REQUIRE(eventually([&] { return all.has_settled(); }, 120s));
    REQUIRE(all.look().confirmed == sessions);

    auto const start = steady::now();
    n->signal(SIGTERM);
    CHECK(n->wait(30s) == 0);
    auto const took = since(start);
    CHECK(eventually([&] { return all.look().closed == sessions; }));
    CHECK(all.look().disconnects ==
          std::map<std::string, std::size_t>{{"server_restart", sessions}});
    CHECK(w.rows() == 0);
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE routing_active") == 0);
    CHECK(w.sql().number("SELECT count(*) FROM routing_transitions WHERE NOT active AND "
                         "reason = 'disconnected'") == static_cast<long>(agents.size()));
    std::cout << sessions << " sessions: sent away, released and exited 0 in " << took.count()
              << " ms" << std::endl;
}

TEST_CASE("clients that are all on one shard of many are sent away as fast") {
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_THREADS", "64"}, {"PRESENCED_DRAIN_TIMEOUT", "5s"}});
    constexpr std::size_t sessions = 300;
    cable_loop loop;
    swarm all{loop, w.client_options(*n), w.add_agents(10), sessions};
    REQUIRE(eventually([&] { return all.look().confirmed == sessions; }));
    n->signal(SIGTERM);
    CHECK(n->wait() == 0); // 1 when somebody is left after the drain's time
    CHECK(eventually([&] { return all.look().closed == sessions; }));
    CHECK(all.look().disconnects ==
          std::map<std::string, std::size_t>{{"server_restart", sessions}});
    CHECK(w.rows() == 0);
}

TEST_CASE("whoever is upgraded while a node drains is told to come back, too") {
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    constexpr std::size_t sessions = 600;
    cable_loop loop;
    swarm all{loop, w.client_options(*n), w.add_agents(10), sessions, sessions};
    REQUIRE(eventually([&] { return all.look().opened > 50; }));
    n->signal(SIGTERM);
    auto const code = n->wait(30s);
    INFO(n->log());
    REQUIRE(code.has_value());
    CHECK(*code == 0);
    CHECK(eventually([&] { return all.look().closed + all.look().refused == sessions; }));
    auto const counts = all.look();
    CHECK(counts.closed == counts.opened);
    REQUIRE(counts.disconnects.count("server_restart") == 1);
    CHECK(counts.disconnects.at("server_restart") == counts.opened);
    CHECK(w.rows() == 0);
}

TEST_CASE("a node whose database says nothing ends in the time that operators are told") {
    auto const frozen_for = GENERATE(0ms, 700ms, 2500ms); // in a call, or connecting again
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_DRAIN_TIMEOUT", "2s"}});
    constexpr std::size_t sessions = 300;
    cable_loop loop;
    swarm all{loop, w.client_options(*n), w.add_agents(30), sessions};
    REQUIRE(eventually([&] { return all.look().confirmed == sessions; }));
    postgres::shared().freeze();
    std::this_thread::sleep_for(frozen_for); // how far its threads are is what differs
    n->signal(SIGTERM);
    auto const code = n->wait(2s + after_drain_timeout);
    postgres::shared().thaw();
    INFO(n->log());
    CHECK(code == 1);
    CHECK(n->log_has("leases=300: they run out by themselves"));
}
