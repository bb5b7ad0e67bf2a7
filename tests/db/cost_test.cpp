#include "tests/db/node.hpp"
#include "tests/support/scale.hpp"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iostream>
#include <thread>

#include <unistd.h>

using namespace presenced;
using namespace presenced::tests;

namespace {

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

// A database in which leases may be judged, with an agent and a live row for each number from 1 to
// `rows`, made by SQL and without triggers. Rows whose number is a multiple of `dead_every` are
// those of the node "dead", the others those of "alive".
std::string make_rows(postgres& server, int rows, int dead_every, std::string const& stale_after) {
    auto conninfo = server.create_database();
    sql_session sql{conninfo};
    auto const numbers = " FROM generate_series(1, " + std::to_string(rows) + ") g";
    sql.query("SET session_replication_role = replica; SET synchronous_commit = off;"
              "INSERT INTO agents (id, owner_id, routing_active) SELECT g, 1, true" +
              numbers);
    sql.query("SET session_replication_role = replica; SET synchronous_commit = off;"
              "INSERT INTO agent_subscriptions (agent_id, token, session_id, node) "
              "SELECT g, left(md5(g::text), 22), '00000000-0000-4000-8000-000000000000', "
              "CASE WHEN g % " +
              std::to_string(dead_every) + " = 0 THEN 'dead' ELSE 'alive' END" + numbers);
    sql.query("VACUUM ANALYZE");
    sql.query("UPDATE presence_clock SET stale_after = '" + stale_after + "'");
    sql.query("SELECT presenced_tick('alive', 'boot', '0', '1 h', '{}')");
    sql.query("UPDATE presence_clock SET amnesty_until = '-infinity'");
    return conninfo;
}

double sweep_in_ms(sql_session& sql) {
    auto const began = std::chrono::steady_clock::now();
    auto const swept = sql.query("SELECT ran, flips, reaped "
                                 "FROM presenced_sweep('alive', 'boot', '0 s', '90 d', 500)");
    std::chrono::duration<double, std::milli> const took = std::chrono::steady_clock::now() - began;
    CHECK(swept == std::vector<std::vector<std::string>>{{"t", "{}", "0"}});
    return took.count();
}

// The kernel's caches; only root can. PostgreSQL's own go with a restart.
bool drop_caches() {
    ::sync();
    std::ofstream caches{"/proc/sys/vm/drop_caches"};
    caches << "3" << std::flush;
    return caches.good();
}

} // namespace

// Figures, not a judgement: by hand, on a quiet machine, with a release build.
//   build/release/tests/db/db_tests "[cost]"
// PRESENCED_COST_ROWS for one size alone.
TEST_CASE("cost: a sweep with nothing to do does not grow with the rows", "[.][cost]") {
    auto const only = scale("PRESENCED_COST_ROWS", 0);
    postgres server{{"shared_buffers = 128MB", "max_wal_size = 4GB"}};
    for (int const rows : {100'000, 1'000'000, 3'000'000}) {
        if (only != 0 && only != rows) {
            continue;
        }
        auto const conninfo = make_rows(server, rows, rows + 1, "1 day");
        std::vector<double> warm;
        {
            sql_session sql{conninfo};
            for (int i = 0; i < 21; ++i) {
                warm.push_back(sweep_in_ms(sql));
            }
        }
        server.stop();
        auto const is_cold = drop_caches();
        server.start();
        sql_session sql{conninfo};
        std::vector<double> cold;
        for (int i = 0; i < 21; ++i) {
            cold.push_back(sweep_in_ms(sql));
        }
        std::cout << rows << " live rows: warm median " << median(warm) << " ms, "
                  << *std::min_element(warm.begin(), warm.end()) << " to "
                  << *std::max_element(warm.begin(), warm.end()) << "; after a restart"
                  << (is_cold ? " with empty caches" : "") << ": first " << cold.front()
                  << " ms, median " << median(cold) << ", most "
                  << *std::max_element(cold.begin(), cold.end()) << std::endl;
    }
}

// By the default timings: within stale_after and a sweep, which are 50 s. The rows of the node that
// lives are renewed meanwhile.
TEST_CASE("cost: a node dies among a million rows", "[.][cost]") {
    auto const rows = scale("PRESENCED_COST_ROWS", 1'000'000);
    constexpr int dead_every = 50;
    postgres server{{"shared_buffers = 128MB", "max_wal_size = 4GB"}};
    auto const conninfo = make_rows(server, rows, dead_every, "45 s");
    sql_session sql{conninfo};
    std::atomic<bool> is_over{false};
    std::atomic<int> passes{0};
    std::thread renewals{[&] {
        sql_session renewing{conninfo};
        renewing.query("SET synchronous_commit = off; SET presenced.writer = 'on'");
        auto const pages =
            renewing.number("SELECT pg_relation_size('agent_subscriptions') / 8192 + 1");
        while (!is_over) {
            for (long page = 0; page < pages && !is_over; page += 2'000) {
                renewing.query("UPDATE agent_subscriptions SET last_seen_at = clock_timestamp() "
                               "WHERE ctid >= '(" +
                               std::to_string(page) + ",0)' AND ctid < '(" +
                               std::to_string(page + 2'000) + ",0)'" +
                               (passes > 0 ? " AND node = 'alive'" : ""));
            }
            ++passes;
        }
    }};
    while (passes == 0) {
        std::this_thread::yield();
    }
    node alive{conninfo, "alive"};
    CHECK(alive.is_up());
    sql.query("SET session_replication_role = replica;"
              "UPDATE agent_subscriptions SET last_seen_at = clock_timestamp() - random() * "
              "interval '15 s' WHERE node = 'dead';"
              "UPDATE presence_clock SET amnesty_until = '-infinity';"
              "DELETE FROM routing_transitions;"
              "SET session_replication_role = origin;"
              "INSERT INTO nodes (node, boot_id) VALUES ('dead', 'boot')");
    auto const last_tick = std::chrono::steady_clock::now();
    auto const since = [&] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - last_tick).count();
    };
    auto const off = [&] {
        return sql.number("SELECT count(*) FROM routing_transitions");
    };
    auto const first_off = eventually([&] { return off() > 0; }, 120s) ? since() : -1;
    auto const all_off =
        eventually([&] { return off() >= rows / dead_every; }, 120s) ? since() : -1;
    is_over = true;
    renewals.join();
    std::cout << rows / dead_every << " leases of a dead node among " << rows
              << " rows: seconds after its last tick: first flag off " << first_off
              << ", last flag off " << all_off << " (" << off() << " flips, "
              << alive.failures.of("sweep") << " sweeps failed, the others were renewed " << passes
              << " times)" << std::endl;
    CHECK(off() == rows / dead_every);
    CHECK(all_off <= 50);
}

// PRESENCED_COST_AGENTS and PRESENCED_COST_ROWS for other sizes than a million and 100,000.
TEST_CASE("cost: renewals are HOT", "[.][cost]") {
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
}
