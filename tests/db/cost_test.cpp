#include "tests/db/node.hpp"
#include "tests/support/scale.hpp"

#include <algorithm>
#include <iostream>

using namespace presenced;
using namespace presenced::tests;

// Figures, not a judgement: by hand, on a quiet machine, with a release build.
//   build/release/tests/db/db_tests "[cost]"
// PRESENCED_COST_AGENTS and PRESENCED_COST_ROWS for other sizes than a million and 100,000.
TEST_CASE("cost: a sweep with nothing to do, and renewals that are HOT", "[.][cost]") {
    auto const agents = scale("PRESENCED_COST_AGENTS", 1'000'000);
    auto const rows = scale("PRESENCED_COST_ROWS", 100'000);
    postgres server{{"shared_buffers = 128MB"}};
    auto const conninfo = server.create_database();
    sql_session sql{conninfo};
    sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(1, " +
              std::to_string(agents) + ") g");
    {
        presence::settings rarely;
        rarely.sweep = 4s; // the measuring session sweeps, the node hardly
        node a{conninfo, "a", rarely};
        std::vector<std::pair<db::agent_id, lease_token>> leases;
        for (int i = 0; i < rows; ++i) {
            leases.emplace_back(1 + static_cast<db::agent_id>(i) * agents / rows, a.token());
        }
        std::size_t sent = 0;
        for (auto const& [agent, token] : leases) {
            a.acquire(agent, token, 1, "00000000-0000-4000-8000-000000000000");
            if (++sent % 20'000 == 0 || sent == leases.size()) {
                REQUIRE(
                    eventually([&] { return a.box.count(lease_outcome::acquired) == sent; }, 60s));
            }
        }
        sql.query("VACUUM ANALYZE");
        std::size_t renewed = 0;
        auto const began = std::chrono::steady_clock::now();
        for (int round = 0; round < 4; ++round) {
            for (auto const& [agent, token] : leases) {
                a.renew(agent, token);
            }
            renewed += leases.size();
            REQUIRE(
                eventually([&] { return a.box.count(lease_outcome::renewed) == renewed; }, 60s));
        }
        std::chrono::duration<double> const took = std::chrono::steady_clock::now() - began;
        std::cout << "renewals: " << renewed << " in " << took.count() << " s, "
                  << static_cast<double>(renewed) / took.count() << " a second\n";
    }
    auto const hot = sql.query("SELECT n_tup_upd, n_tup_hot_upd, "
                               "round(100.0 * n_tup_hot_upd / n_tup_upd, 2) "
                               "FROM pg_stat_user_tables WHERE relname = 'agent_subscriptions'");
    std::cout << "updates: " << hot.at(0).at(0) << ", HOT: " << hot.at(0).at(1) << " ("
              << hot.at(0).at(2) << " %)\n";

    sql.query("SELECT presenced_tick('cost', 'boot', '0', '10 min', '{}')");
    sql.query("UPDATE presence_clock SET amnesty_until = '-infinity'");
    std::vector<double> times;
    for (int i = 0; i < 11; ++i) {
        auto const began = std::chrono::steady_clock::now();
        auto const swept = sql.query("SELECT ran, flips, reaped "
                                     "FROM presenced_sweep('cost', 'boot', '0 s', '90 d', 500)");
        times.push_back(
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began)
                .count());
        CHECK(swept == std::vector<std::vector<std::string>>{{"t", "{}", "0"}});
    }
    std::sort(times.begin(), times.end());
    std::cout << "sweep with nothing to do, " << agents << " agents, " << rows
              << " live rows: median " << times[times.size() / 2] << " ms, " << times.front()
              << " to " << times.back() << "; every 5 s: " << times[times.size() / 2] / 5'000 * 100
              << " % of one core\n";
}
