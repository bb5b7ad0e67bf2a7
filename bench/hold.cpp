#include "bench/hold.hpp"

#include "bench/lease_driver.hpp"
#include "bench/machine.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace presenced::bench {

namespace {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

constexpr auto heartbeat = 15'000ms;
constexpr auto flip_pause = 20ms;
constexpr auto quiet_flips = 300; // before there are leases: what a flip takes on this machine
constexpr auto counters_flush = 1500ms; // until PostgreSQL's counters are in

double in_ms(std::chrono::nanoseconds d) {
    return std::chrono::duration<double, std::milli>(d).count();
}

// Sweeps that did not fail, as the nodes see them.
class sweep_observer final : public db::observer {
public:
    void statement(std::string_view name, std::chrono::nanoseconds took, bool succeeded) override {
        if (name == "sweep" && succeeded) {
            std::lock_guard const lock{mutex_};
            sweeps_.push_back(in_ms(took));
        } else if (name == "sweep") {
            std::lock_guard const lock{mutex_};
            ++failed_;
        }
    }
    void reset() {
        std::lock_guard const lock{mutex_};
        sweeps_.clear();
        failed_ = 0;
    }
    std::vector<double> sorted() const {
        std::lock_guard const lock{mutex_};
        auto all = sweeps_;
        std::sort(all.begin(), all.end());
        return all;
    }
    std::size_t failed() const {
        std::lock_guard const lock{mutex_};
        return failed_;
    }

private:
    mutable std::mutex mutex_;
    std::vector<double> sweeps_;
    std::size_t failed_ = 0;
};

struct flips {
    std::vector<double> on;
    std::vector<double> off;

    void sort() {
        std::sort(on.begin(), on.end());
        std::sort(off.begin(), off.end());
    }
};

// One agent after the other goes on and off, until `wanted` says that it is enough.
template <class Wanted>
flips flip(lease_driver& agents, Wanted wanted) {
    flips took;
    for (std::size_t i = 0; wanted(took); i = (i + 1) % agents.size()) {
        took.on.push_back(in_ms(agents.acquire_one(i)));
        took.off.push_back(in_ms(agents.release_one(i)));
        std::this_thread::sleep_for(flip_pause);
    }
    took.sort();
    return took;
}

nlohmann::ordered_json shown(flips const& f) {
    return {
        {"flips", f.on.size() + f.off.size()},   {"on_p50_ms", percentile(f.on, 0.5)},
        {"on_p99_ms", percentile(f.on, 0.99)},   {"off_p50_ms", percentile(f.off, 0.5)},
        {"off_p99_ms", percentile(f.off, 0.99)}, {"off_max_ms", f.off.empty() ? 0 : f.off.back()}};
}

} // namespace

nlohmann::ordered_json hold(hold_plan const& p) {
    spdlog::set_level(spdlog::level::off); // what goes to stdout is the result
    database link{p.database};
    sweep_observer watcher;
    std::vector<std::unique_ptr<db::store>> stores;
    std::vector<std::unique_ptr<lease_driver>> drivers;
    auto const flipping_store =
        db::make_postgres_store(options_of(p.database, "bench-flips"), watcher);
    lease_driver flipping{*flipping_store, leases_of(link, p.flipping, p.leases)};
    auto const quiet = flip(flipping, [](flips const& f) { return f.on.size() < quiet_flips; });

    for (std::size_t n = 0; n < p.nodes; ++n) {
        auto const from = p.leases * n / p.nodes;
        auto const to = p.leases * (n + 1) / p.nodes;
        stores.push_back(
            db::make_postgres_store(options_of(p.database, "bench-" + std::to_string(n)), watcher));
        drivers.push_back(
            std::make_unique<lease_driver>(*stores.back(), leases_of(link, to - from, from)));
        drivers.back()->acquire();
        drivers.back()->renew(2); // plans are made, pages have the room that renewals need
    }
    std::this_thread::sleep_for(counters_flush);
    watcher.reset();
    auto const before = link.count();
    auto const cpu = look_at(::getpid()).cpu_seconds;
    auto const database_cpu = look_at(p.postgres).cpu_seconds;
    auto const start = steady::now();
    auto const deadline = start + p.length;
    std::vector<std::future<std::size_t>> holding;
    for (auto& d : drivers) {
        holding.push_back(std::async(std::launch::async,
                                     [&d, deadline] { return d->hold(heartbeat, deadline); }));
    }
    auto const busy = flip(flipping, [deadline](flips const&) { return steady::now() < deadline; });
    std::size_t asked = 0;
    for (auto& h : holding) {
        asked += h.get();
    }
    auto const took = std::chrono::duration<double>(steady::now() - start).count();
    auto const burnt = look_at(::getpid()).cpu_seconds - cpu;
    auto const database_burnt = look_at(p.postgres).cpu_seconds - database_cpu;
    std::this_thread::sleep_for(counters_flush);
    auto const after = link.count();
    auto const sweeps = watcher.sorted();

    auto const updates = after.updates - before.updates;
    return {{"scenario", "hold"},
            {"leases", p.leases},
            {"nodes", p.nodes},
            {"seconds", took},
            {"renewals_per_second", static_cast<double>(asked) / took},
            {"client_cores", burnt / took},
            {"database_cores", database_burnt / took},
            {"wal_bytes_per_second", (after.wal_bytes - before.wal_bytes) / took},
            {"hot_share", updates > 0 ? (after.hot_updates - before.hot_updates) / updates : 0},
            {"table_bytes_a_lease", link.number("SELECT pg_relation_size('agent_subscriptions')") /
                                        static_cast<double>(p.leases)},
            {"sweeps", sweeps.size()},
            {"sweeps_failed", watcher.failed()},
            {"sweep_p50_ms", percentile(sweeps, 0.5)},
            {"sweep_max_ms", sweeps.empty() ? 0 : sweeps.back()},
            {"quiet", shown(quiet)},
            {"meanwhile", shown(busy)}};
}

} // namespace presenced::bench
