#include "bench/scenarios.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <thread>

namespace presenced::bench {

namespace {

using namespace std::chrono_literals;

double seconds_between(steady::time_point from, steady::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

double rounded(double value, int digits) {
    auto const scale = std::pow(10.0, digits);
    return std::round(value * scale) / scale;
}

json spread(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return {{"p50", rounded(percentile(values, 0.5), 3)},
            {"p90", rounded(percentile(values, 0.9), 3)},
            {"p99", rounded(percentile(values, 0.99), 3)},
            {"max", rounded(percentile(values, 1), 3)}};
}

// What processes and the database did between the constructor and report().
class meter {
public:
    explicit meter(plan const& p)
        : plan_{p} {
        if (p.database) {
            link_.emplace(*p.database);
        }
        restart();
    }

    void restart() {
        since_ = steady::now();
        for (auto const& [name, process] : plan_.processes) {
            before_[name] = look_at(process);
        }
        if (link_) {
            count_ = link_->count();
        }
    }

    void report(json& into) {
        auto const took = seconds_between(since_, steady::now());
        for (auto const& [name, process] : plan_.processes) {
            auto const now = look_at(process);
            auto const& then = before_[name];
            into["processes"][name] = {
                {"cpu_seconds", rounded(now.cpu_seconds - then.cpu_seconds, 2)},
                {"cores", rounded((now.cpu_seconds - then.cpu_seconds) / took, 4)},
                {"resident_bytes_before", then.resident_bytes},
                {"resident_bytes", now.resident_bytes}};
        }
        if (link_) {
            std::this_thread::sleep_for(1500ms); // until PostgreSQL's counters are in
            auto const now = link_->count();
            into["database"] = {{"commits", now.commits - count_.commits},
                                {"statements", now.statements - count_.statements},
                                {"wal_bytes", now.wal_bytes - count_.wal_bytes},
                                {"renewed_rows", now.updates - count_.updates},
                                {"hot_share", now.updates > count_.updates
                                                  ? rounded((now.hot_updates - count_.hot_updates) /
                                                                (now.updates - count_.updates),
                                                            4)
                                                  : 1.0}};
        }
    }

private:
    plan const& plan_;
    std::optional<database> link_;
    std::map<std::string, process_figures> before_;
    database::counters count_;
    steady::time_point since_;
};

// Starts them all; until each is confirmed or has failed.
bool bring_up(swarm& all, plan const& p) {
    for (std::size_t i = 0; i < all.size(); ++i) {
        all.start(i);
    }
    return all.run([&] { return all.now().confirmed + all.now().failed >= all.size(); },
                   steady::now() + p.limit);
}

json outcome(char const* scenario, swarm const& all) {
    json result = {{"scenario", scenario},
                   {"sessions", all.size()},
                   {"confirmed", all.now().confirmed},
                   {"failed", all.now().failed}};
    for (auto const& [why, count] : all.failures()) {
        result["failures"][why] = count;
    }
    return result;
}

// How fast everybody came in who did, since `start`.
void tell_arrival(json& into, swarm const& all, steady::time_point start) {
    auto const& came = all.confirmed_at();
    std::vector<double> waited;
    waited.reserve(came.size());
    for (auto const at : came) {
        waited.push_back(seconds_between(start, at));
    }
    std::sort(waited.begin(), waited.end());
    auto const all_in = percentile(waited, 1);
    into["seconds"] = rounded(all_in, 4);
    into["seconds_95"] = rounded(percentile(waited, 0.95), 4);
    into["sessions_per_second"] =
        all_in > 0 ? rounded(static_cast<double>(came.size()) / all_in, 1) : 0;
    into["connect_to_confirm_ms"] = spread(all.milliseconds());
    into["start_to_confirm_ms"] = spread([&] {
        auto copy = waited;
        for (auto& w : copy) {
            w *= 1000;
        }
        return copy;
    }());
}

swarm swarm_of(plan const& p) {
    return swarm{p.to, p.identities, p.sessions, p.limits};
}

} // namespace

json storm(plan const& p) {
    auto all = swarm_of(p);
    meter cost{p};
    auto const start = steady::now();
    bring_up(all, p);
    json result = outcome("storm", all);
    tell_arrival(result, all, start);
    cost.report(result);
    return result;
}

json avalanche(plan const& p) {
    auto all = swarm_of(p);
    if (!bring_up(all, p)) {
        throw std::runtime_error{"the sessions did not come in before the avalanche"};
    }
    all.run([] { return false; }, steady::now() + 2s); // and the counters of that are in
    meter cost{p};
    all.forget_times();
    auto const start = steady::now();
    for (std::size_t i = 0; i < all.size(); ++i) {
        all.kill(i);
    }
    bring_up(all, p);
    json result = outcome("avalanche", all);
    tell_arrival(result, all, start);
    cost.report(result);
    return result;
}

json idle(plan const& p) {
    auto all = swarm_of(p);
    // What the first session brings with it, thread by thread, is not the price of a session.
    all.start(0);
    all.run([&] { return all.now().confirmed > 0; }, steady::now() + p.limit);
    all.kill(0);
    all.run([] { return false; }, steady::now() + 1s);
    all.forget_times();

    meter whole{p};
    auto const start = steady::now();
    bring_up(all, p);
    json result = outcome("idle", all);
    tell_arrival(result, all, start);
    json memory;
    whole.report(memory);
    for (auto const& [name, f] : memory["processes"].items()) {
        auto const grown =
            f["resident_bytes"].get<double>() - f["resident_bytes_before"].get<double>();
        result["kib_a_session"][name] =
            rounded(grown / 1024 / static_cast<double>(all.now().confirmed), 2);
    }

    meter steadily{p};
    auto const pings = all.now().pings;
    auto const native = all.now().native_pings;
    auto const from = steady::now();
    all.run([] { return false; }, from + p.hold);
    auto const held = seconds_between(from, steady::now());
    result["held_seconds"] = rounded(held, 2);
    result["still_confirmed"] = all.now().confirmed;
    result["pings"] = all.now().pings - pings;
    result["native_pings"] = all.now().native_pings - native;
    result["pings_a_session_and_second"] = rounded(
        static_cast<double>(all.now().pings - pings) / held / static_cast<double>(all.size()), 4);
    steadily.report(result);
    // Of those who came in. Apart: an object in order is a vector, and grows while it is walked
    // through.
    auto const confirmed = static_cast<double>(std::max<std::size_t>(1, all.now().confirmed));
    json cores;
    for (auto const& [name, f] : result["processes"].items()) {
        cores[name] = rounded(f["cores"].get<double>() * 10'000 / confirmed, 4);
    }
    result["cores_a_10000_sessions"] = std::move(cores);
    return result;
}

json churn(plan const& p) {
    auto all = swarm_of(p);
    if (!bring_up(all, p)) {
        throw std::runtime_error{"the sessions did not come in"};
    }
    all.forget_times();
    meter cost{p};
    auto const start = steady::now();
    auto const until = start + p.hold;
    auto const step = 1s / static_cast<double>(p.per_second);
    std::size_t turn = 0;
    std::size_t made = 0;
    while (steady::now() < until) {
        // One leaves, and comes back a moment later as somebody new.
        auto const next = start + std::chrono::duration_cast<steady::duration>(
                                      step * static_cast<double>(made + 1));
        auto const leaving = turn;
        turn = (turn + 1) % all.size();
        if (all.phase_of(leaving) == phase::confirmed) {
            all.kill(leaving);
            all.start(leaving);
            ++made;
        }
        all.run([] { return false; }, std::min(next, until));
    }
    all.run([&] { return all.now().confirmed + all.now().failed >= all.size(); },
            steady::now() + 10s);
    json result = outcome("churn", all);
    result["joins"] = made;
    result["connect_to_confirm_ms"] = spread(all.milliseconds());
    cost.report(result);
    return result;
}

json lone(plan const& p) {
    if (!p.database) {
        throw std::runtime_error{"lone asks the database for the flag: give its URL"};
    }
    database flags{*p.database};
    std::vector<double> confirms;
    std::vector<double> offs;
    std::size_t failed = 0;
    swarm all{p.to, p.identities, p.rounds, p.limits};
    for (std::size_t i = 0; i < p.rounds; ++i) {
        all.start(i);
        all.run([&] { return all.now().confirmed + all.now().failed > failed; },
                steady::now() + 10s);
        if (all.phase_of(i) != phase::confirmed) {
            failed = all.now().failed;
            continue;
        }
        auto const agent = p.identities[i % p.identities.size()].agent;
        auto const is_on = "SELECT routing_active FROM agents WHERE id = " + agent;
        if (flags.value(is_on) != "t") {
            throw std::runtime_error{"agent " + agent + " is confirmed and its flag is off"};
        }
        auto const asked = steady::now();
        all.unsubscribe(i);
        while (flags.value(is_on) != "f" && steady::now() < asked + 10s) {
            std::this_thread::sleep_for(100us);
        }
        offs.push_back(std::chrono::duration<double, std::milli>(steady::now() - asked).count());
        all.close(i);
        all.run([] { return false; }, steady::now() + 5ms);
    }
    json result = {{"scenario", "lone"}, {"rounds", p.rounds}, {"failed", failed}};
    result["connect_to_confirm_ms"] = spread(all.milliseconds());
    result["unsubscribe_to_flag_off_ms"] = spread(offs);
    return result;
}

} // namespace presenced::bench
