#include "bench/renewals.hpp"

#include "bench/lease_driver.hpp"
#include "bench/machine.hpp"

#include <spdlog/spdlog.h>

#include <optional>
#include <thread>

#include <unistd.h>

namespace presenced::bench {

namespace {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

constexpr std::size_t rounds_of_ten_minutes = 40; // one every 15 s

class counting_observer final : public db::observer {
public:
    void batch(std::string_view lane, std::size_t) override {
        if (lane == "renewal") {
            ++batches; // one thread's
        }
    }
    std::size_t batches = 0;
};

} // namespace

nlohmann::ordered_json renew(renewal_plan const& p) {
    spdlog::set_level(spdlog::level::off); // what goes to stdout is the result
    database link{p.database};
    counting_observer watcher;
    auto const store = db::make_postgres_store(options_of(p.database, "bench"), watcher);
    lease_driver leases{*store, leases_of(link, p.leases)};
    leases.acquire();
    leases.renew(2); // plans are made, pages have the room that renewals need

    std::optional<database> backup;
    if (p.old_snapshot) {
        backup.emplace(p.database);
        backup->value("BEGIN ISOLATION LEVEL REPEATABLE READ");
        backup->value("SELECT count(*) FROM agent_subscriptions");
        leases.renew(rounds_of_ten_minutes);
    }
    std::this_thread::sleep_for(1500ms); // until PostgreSQL's counters are in
    auto const before = link.count();
    auto const batches = watcher.batches;
    auto const cpu = look_at(::getpid()).cpu_seconds;
    auto const database_cpu = look_at(p.postgres).cpu_seconds;
    auto const start = steady::now();
    leases.renew(p.rounds);
    auto const took = std::chrono::duration<double>(steady::now() - start).count();
    auto const burnt = look_at(::getpid()).cpu_seconds - cpu;
    auto const database_burnt = look_at(p.postgres).cpu_seconds - database_cpu;
    auto const sent = watcher.batches - batches;
    std::this_thread::sleep_for(1500ms);
    auto const after = link.count();
    auto const table = link.number("SELECT pg_relation_size('agent_subscriptions')");
    backup.reset();
    leases.release();
    store->stop(steady::now() + 5s);

    auto const rows = static_cast<double>(p.leases * p.rounds);
    auto const updates = after.updates - before.updates;
    return {{"scenario", p.old_snapshot ? "renew with an old snapshot" : "renew"},
            {"leases", p.leases},
            {"rounds", p.rounds},
            {"seconds", took},
            {"rows_per_second", rows / took},
            {"rows_a_batch", rows / static_cast<double>(sent)},
            {"hot_share", (after.hot_updates - before.hot_updates) / updates},
            {"updates_a_renewal", updates / rows},
            {"wal_bytes_a_renewal", (after.wal_bytes - before.wal_bytes) / rows},
            {"client_cpu_us_a_renewal", burnt * 1e6 / rows},
            {"database_cpu_us_a_renewal", database_burnt * 1e6 / rows},
            {"table_bytes_a_lease", table / static_cast<double>(p.leases)}};
}

} // namespace presenced::bench
