// Somebody's psql holds one row for longer than stale_after, under 500 live sessions: nobody else
// waits for it, and nobody is reaped (P9, P3).
// PRESENCED_E2E_HOLD_SECONDS: how long (12); 60 means the default timings, less means shorter ones
// in proportion, so that a row that is held becomes stale by age every time.
#include "tests/support/catch.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <iomanip>
#include <iostream>
#include <thread>

using namespace presenced::tests;

namespace {

using latency = std::chrono::duration<double, std::milli>;

// Subscribes to one agent after the other, and leaves again, for as long as `span`. Returns how
// long each confirmation took, sorted.
std::vector<latency> probe(cable& client, std::vector<std::int64_t> const& agents,
                           milliseconds span) {
    std::vector<latency> all;
    std::size_t i = 0;
    for (auto const start = steady::now(); since(start) < span; ++i) {
        auto const id = identifier(agents[i % agents.size()], "probe " + std::to_string(i));
        auto const asked = steady::now();
        client.subscribe(id);
        if (client.next() != "confirm " + id) {
            throw std::runtime_error{"not confirmed: " + id};
        }
        all.push_back(steady::now() - asked);
        client.unsubscribe(id);
        // A hundred a second at most: what is measured is the wait, not the load.
        std::this_thread::sleep_until(asked + 10ms);
    }
    std::sort(all.begin(), all.end());
    return all;
}

latency at(std::vector<latency> const& sorted, double part) {
    return sorted[static_cast<std::size_t>(part * static_cast<double>(sorted.size() - 1))];
}

void print(char const* when, std::vector<latency> const& sorted) {
    std::cout << "  " << std::left << std::setw(24) << when << std::right << std::setw(6)
              << sorted.size() << " subscribes, ms: median " << std::fixed << std::setprecision(1)
              << at(sorted, 0.5).count() << ", 99 % " << at(sorted, 0.99).count() << ", most "
              << at(sorted, 1).count() << std::endl;
}

} // namespace

TEST_CASE("a row that somebody holds for long delays only itself") {
    auto const hold = std::chrono::seconds{scale("PRESENCED_E2E_HOLD_SECONDS", 12)};
    auto const settings = timings(static_cast<int>(hold.count()), 60);
    constexpr long sessions = 500;
    constexpr long agent_count = 50;
    constexpr long each = sessions / agent_count;
    world w{settings};
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    auto const agents = w.add_agents(agent_count);
    auto const held_agent = agents.front();
    std::vector<std::int64_t> const others{agents.begin() + 1, agents.end()};
    cable_loop loop;
    swarm all{loop, w.client_options(*n), agents, sessions};
    REQUIRE(eventually([&] { return all.has_settled(); }, 60s));
    REQUIRE(all.look().confirmed == std::size_t{sessions});
    auto const nobody_is_gone = [&] {
        auto const c = all.look();
        return c.closed == 0 && c.disconnects.empty() &&
               n->metric("presenced_leases_lost_total") == 0;
    };
    std::cout << sessions << " sessions, rows held for " << hold.count() << " s, stale_after "
              << settings.at("PRESENCED_STALE_AFTER") << ":" << std::endl;

    auto const prober = w.session(*n);
    probe(*prober, others, 1s); // to warm up
    auto const before = probe(*prober, others, hold / 2);
    print("before", before);

    // The agent's row. A subscribe and a release of this agent have to wait.
    auto const trapped = w.subscriber(*n, others.front());
    auto const leaving = w.subscriber(*n, held_agent);
    auto holder = w.another_session();
    holder.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(held_agent) +
                 " FOR UPDATE");
    trapped->subscribe(identifier(held_agent, "trapped"));
    leaving->close();
    auto const with_agent = probe(*prober, others, hold);
    print("an agent's row held", with_agent);
    CHECK(trapped->next(0ms) == "nothing");
    CHECK(w.rows(held_agent) == each + 1);
    CHECK(nobody_is_gone());
    holder.query("ROLLBACK");
    CHECK(trapped->next() == "confirm " + identifier(held_agent, "trapped"));
    CHECK(w.has_rows(held_agent, each + 1));
    trapped->close();
    CHECK(w.has_rows(held_agent, each));

    // A subscription's row. It cannot be renewed, and is vouched for.
    auto const token =
        w.sql().value("SELECT min(token) FROM agent_subscriptions WHERE agent_id = " +
                      std::to_string(held_agent));
    auto const the_row = "SELECT extract(epoch FROM clock_timestamp() - last_seen_at) > "
                         "extract(epoch FROM stale_after) FROM agent_subscriptions, "
                         "presence_clock WHERE token = '" +
                         token + "'";
    holder.query("BEGIN; SELECT FROM agent_subscriptions WHERE token = '" + token + "' FOR UPDATE");
    auto const with_row = probe(*prober, agents, hold);
    print("a session's row held", with_row);
    CHECK(w.sql().value(the_row) == "t"); // stale by age
    CHECK(w.sql().number("SELECT count(*) FROM live_agent_subscriptions "
                         "WHERE session_id IS NULL") == sessions);
    CHECK(nobody_is_gone());
    holder.query("ROLLBACK");
    CHECK(eventually([&] { return w.sql().value(the_row) == "f"; }));
    CHECK(nobody_is_gone());
    CHECK(w.sql().number("SELECT count(*) FROM agent_subscriptions "
                         "WHERE session_id IS NULL") == sessions);
    CHECK(w.sql().number("SELECT count(*) FROM routing_transitions") == agent_count);

    // Nobody waited for the lock, however slow the machine is: they would have waited for all of
    // it.
    CHECK(at(with_agent, 1.0) < hold / 2);
    CHECK(at(with_row, 1.0) < hold / 2);
    // Milliseconds are a measurement: judged when it is asked for, on a machine of its own.
    if (scale("PRESENCED_E2E_HOLD_SECONDS", 0) != 0) {
        CHECK(at(with_agent, 1.0) <= at(before, 1.0) + 100ms);
        CHECK(at(with_row, 1.0) <= at(before, 1.0) + 100ms);
    }
}
