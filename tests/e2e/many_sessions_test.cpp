// As many sessions as one node is asked to hold: all confirmed, a row for each, all closed, and
// nothing left. PRESENCED_E2E_SESSIONS: how many (2,000).
#include "tests/support/catch.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <csignal>
#include <iostream>

using namespace presenced::tests;

TEST_CASE("every session of thousands is confirmed and has its row, and leaves nothing behind") {
    auto const sessions = static_cast<std::size_t>(scale("PRESENCED_E2E_SESSIONS", 2'000));
    REQUIRE(raise_descriptor_limit() > sessions + 100);
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    auto const agents = w.add_agents(sessions / 10 + 1);
    cable_loop loop;

    auto const start = steady::now();
    swarm all{loop, w.client_options(*n), agents, sessions};
    REQUIRE(eventually([&] { return all.has_settled(); }, 240s));
    auto const connected = since(start);
    auto const counts = all.look();
    CHECK(counts.confirmed == sessions);
    CHECK(counts.refused + counts.rejected + counts.closed == 0);
    CHECK(w.rows() == static_cast<long>(sessions));
    CHECK(w.sql().number("SELECT count(*) FROM live_agent_subscriptions") ==
          static_cast<long>(sessions));
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE routing_active") ==
          static_cast<long>(agents.size()));
    CHECK(n->metric("presenced_connections") == static_cast<double>(sessions));
    CHECK(n->metric("presenced_subscriptions{state=\"confirmed\"}") ==
          static_cast<double>(sessions));
    auto const memory = n->metric("process_resident_memory_bytes");

    auto const closing = steady::now();
    all.close_all();
    CHECK(eventually([&] { return all.look().closed == sessions; }, 60s));
    auto const closed = since(closing);
    CHECK(eventually([&] { return w.rows() == 0; }, 60s));
    auto const released = since(closing);
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE routing_active") == 0);
    CHECK(w.sql().number("SELECT count(*) FROM routing_transitions") ==
          2 * static_cast<long>(agents.size()));
    CHECK(eventually([&] { return n->metric("presenced_connections") == 0; }));

    auto const latencies = all.latencies();
    std::cout << sessions << " sessions of " << agents.size()
              << " agents on one node: confirmed in " << connected.count() << " ms ("
              << sessions * 1000 /
                     static_cast<std::size_t>(std::max<std::int64_t>(connected.count(), 1))
              << " a second), each in ms: median " << latencies.at(sessions / 2).count()
              << ", 99 % " << latencies.at(sessions * 99 / 100).count() << ", most "
              << latencies.back().count() << "; resident " << static_cast<long>(memory / 1048576)
              << " MiB; closed in " << closed.count() << " ms, rows gone in " << released.count()
              << " ms" << std::endl;
    n->signal(SIGTERM);
    CHECK(n->wait() == 0);
}
