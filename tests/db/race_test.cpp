#include "tests/db/node.hpp"

#include <random>
#include <thread>

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("P1: several nodes over the same agents, seen by a reader of snapshots", "[db][race]") {
    world w;
    std::vector<std::unique_ptr<node>> nodes;
    for (auto const* name : {"a", "b", "c"}) {
        nodes.push_back(std::make_unique<node>(w.conninfo, name));
        REQUIRE(nodes.back()->is_up());
    }
    std::atomic<bool> done{false};
    std::atomic<int> differences{0};
    std::atomic<int> snapshots{0};
    std::thread reader{[&] {
        sql_session sql{w.conninfo};
        while (!done) {
            differences += static_cast<int>(
                sql.number("SELECT count(*) FROM agents a WHERE routing_active IS DISTINCT FROM "
                           "EXISTS (SELECT FROM agent_subscriptions s WHERE s.agent_id = a.id)"));
            ++snapshots;
        }
    }};
    // Backends die all the while; outcomes become unknown and are retried.
    std::thread killer{[&] {
        sql_session sql{w.conninfo};
        while (!done) {
            sql.query("SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                      "WHERE application_name = 'presenced' AND datname = current_database() "
                      "AND state = 'active' ORDER BY random() LIMIT 1) v");
            eventually([&] { return done.load(); }, 100ms);
        }
    }};
    std::vector<std::thread> clients;
    std::atomic<int> wrong{0};
    for (auto& n : nodes) {
        clients.emplace_back([&wrong, &n = *n] {
            std::minstd_rand random{static_cast<std::minstd_rand::result_type>(n.name()[0])};
            std::map<std::uint64_t, std::pair<db::agent_id, lease_token>> waiting;
            auto const end = std::chrono::steady_clock::now() + 4s;
            while (std::chrono::steady_clock::now() < end) {
                for (int i = 0; i < 8; ++i) {
                    db::agent_id const agent = static_cast<db::agent_id>(random() % 4 + 1);
                    auto const token = n.token();
                    auto const key = n.acquire(agent, token);
                    waiting[key] = {agent, token};
                    if (random() % 4 == 0) {
                        n.store->abandon(agent, token);
                    }
                }
                for (auto const& entry : waiting) {
                    auto const key = entry.first; // clang 14 captures no structured binding
                    auto const& lease = entry.second;
                    if (!eventually([&] { return !n.box.outcomes(key).empty(); })) {
                        ++wrong;
                        continue;
                    }
                    auto const outcomes = n.box.outcomes(key);
                    if (outcomes == std::vector{lease_outcome::acquired}) {
                        auto const release = n.release(lease.first, lease.second);
                        wrong += n.got(release, lease_outcome::released) ? 0 : 1;
                    } else if (outcomes != std::vector{lease_outcome::abandoned}) {
                        ++wrong;
                    }
                }
                waiting.clear();
            }
        });
    }
    for (auto& client : clients) {
        client.join();
    }
    done = true;
    reader.join();
    killer.join();
    CHECK(wrong == 0);
    CHECK(differences == 0);
    CHECK(snapshots > 10);
    CHECK(w.rows() == 0);
    CHECK(w.sql.number("SELECT count(*) FROM agents WHERE routing_active") == 0);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions") > 10);
    // Transitions of one agent alternate.
    CHECK(w.sql.number("SELECT count(*) FROM (SELECT active, lag(active) OVER (PARTITION BY "
                       "agent_id ORDER BY id) AS before FROM routing_transitions) t "
                       "WHERE active = before") == 0);
}

TEST_CASE("P1: a REPEATABLE READ transaction sees one moment, whatever happens meanwhile",
          "[db][race]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    sql_session reader{w.conninfo};
    reader.query("BEGIN ISOLATION LEVEL REPEATABLE READ");
    auto const live = "SELECT count(*) FROM live_agent_subscriptions WHERE agent_id = 3";
    auto const flag = "SELECT routing_active FROM agents WHERE id = 3";
    CHECK(reader.number(live) == 1);
    REQUIRE(a.got(a.release(3, token), lease_outcome::released));
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    CHECK(reader.number(live) == 1);
    CHECK(reader.value(flag) == "t");
    CHECK(reader.number("SELECT count(*) FROM live_agent_subscriptions") == 1);
    reader.query("COMMIT");
    CHECK(reader.number(live) == 0);
    CHECK(reader.value(flag) == "f");
    CHECK(reader.number("SELECT count(*) FROM live_agent_subscriptions") == 1);
}

TEST_CASE("renewals and releases of the same agents do not lock each other out", "[db][race]") {
    world w;
    node a{w.conninfo, "a"};
    node b{w.conninfo, "b"};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 1'000; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 1'000; }));
    // Another node renews what this one releases: each row is renewed, or missing, never both.
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        auto const agent = static_cast<db::agent_id>(i % 9 + 1);
        a.release(agent, tokens[i]);
        b.renew(agent, tokens[i]);
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::released) == 1'000; }));
    REQUIRE(eventually([&] {
        return b.box.count(lease_outcome::renewed) + b.box.count(lease_outcome::missing) == 1'000;
    }));
    CHECK(w.rows() == 0);
    CHECK(w.sql.number("SELECT deadlocks FROM pg_stat_database "
                       "WHERE datname = current_database()") == 0);
}
