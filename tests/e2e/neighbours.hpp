// What well-behaved clients of a node notice while others attack it.
#pragma once

#include "tests/support/catch.hpp"
#include "tests/support/eventually.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <time.h>
#include <unistd.h>

namespace presenced::tests {

// Well-behaved clients of a node: three that sit there, and one that subscribes and unsubscribes.
// From the beginning of a watch to its end, nothing may happen to them.
class neighbours {
public:
    // `with_figures`: growth, ping gap and p99 are judged, too; only a release that has the machine
    // to itself keeps within them.
    neighbours(world& w, node const& n, bool with_figures)
        : node_{n}
        , with_figures_{with_figures}
        , agent_{w.add_agent()} {
        for (int i = 0; i < 3; ++i) {
            sitting_.push_back(w.subscriber(n, agent_));
        }
        busy_ = w.session(n);
        thread_ = std::thread{[this] {
            subscribe_again_and_again();
        }};
    }
    ~neighbours() {
        stopping_ = true;
        thread_.join();
    }

    // Runs an attack, which returns what its clients got, and prints its line.
    template <class Attack>
    void watch(std::string const& name, Attack attack) {
        auto const before = memory();
        begun_ = steady::now();
        {
            std::lock_guard const lock{mutex_};
            latencies_.clear();
            work_.clear();
            most_memory_ = before;
        }
        std::string const got = attack();
        // What the attack still does to the node, and at least one ping for everybody.
        auto const end = steady::now();
        CHECK(eventually([&] {
            return std::all_of(sitting_.begin(), sitting_.end(), [&](auto const& c) {
                // A short attack is over before the first ping has come.
                auto const pings = c->pings();
                return !pings.empty() && pings.back().at > end;
            });
        }));
        std::vector<milliseconds> latencies;
        std::vector<milliseconds> work;
        double growth = 0;
        {
            std::lock_guard const lock{mutex_};
            latencies = latencies_;
            work = work_;
            growth = (most_memory_ - before) / (1 << 20);
        }
        auto const p99 = percentile_99(latencies);
        auto const work_p99 = percentile_99(work);
        auto gap = 0ms;
        std::size_t gone = is_broken_ ? 1 : 0;
        for (auto const& c : sitting_) {
            gap = std::max(gap, longest_gap(*c));
            gone += c->next(0ms) != "nothing" ? 1U : 0U;
        }
        std::printf("%s | %s | %.1f MiB | %lld ms | %lld ms | %lld ms | %zu\n", name.c_str(),
                    got.c_str(), growth, static_cast<long long>(gap.count()),
                    static_cast<long long>(p99.count()), static_cast<long long>(work_p99.count()),
                    gone);
        std::fflush(stdout);
        CAPTURE(name);
        CHECK(gone == 0);
        CHECK(!latencies.empty());
        // What the node did for others before it came to a neighbour, however slow the machine is:
        // each attacker gets his turn, and no more.
        CHECK((work_p99 < 100ms || !work_is_judged));
        if (with_figures_) {
            CHECK(growth < 64);
            CHECK(gap < 4s); // promised: every 3 s
            CHECK(p99 < 100ms);
        }
    }

private:
    // Under TSan everything takes ten times as long, and limits on a node's work are not judged.
#ifdef __SANITIZE_THREAD__
    static constexpr auto work_is_judged = false;
#else
    static constexpr auto work_is_judged = true;
#endif

    static milliseconds percentile_99(std::vector<milliseconds>& all) {
        std::sort(all.begin(), all.end());
        return all.empty() ? milliseconds::max() : all[(all.size() * 99 - 1) / 100];
    }

    // The node's processor time so far.
    std::chrono::nanoseconds worked() const {
        clockid_t clock{};
        timespec t{};
        if (clock_getcpuclockid(node_.pid(), &clock) != 0 || clock_gettime(clock, &t) != 0) {
            throw std::runtime_error{"the node has no processor clock"};
        }
        return std::chrono::seconds{t.tv_sec} + std::chrono::nanoseconds{t.tv_nsec};
    }

    // Not out of /metrics, which the attack may keep from answering.
    double memory() const {
        std::ifstream statm{"/proc/" + std::to_string(node_.pid()) + "/statm"};
        std::size_t pages = 0;
        std::size_t resident = 0;
        if (!(statm >> pages >> resident)) {
            throw std::runtime_error{"the node's memory cannot be read"};
        }
        return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
    }

    milliseconds longest_gap(cable const& c) const {
        auto longest = 0ms;
        auto last = steady::time_point::max();
        for (auto const& ping : c.pings()) {
            if (last != steady::time_point::max() && ping.at > begun_) {
                longest =
                    std::max(longest, std::chrono::duration_cast<milliseconds>(ping.at - last));
            }
            last = ping.at;
        }
        return longest;
    }

    void subscribe_again_and_again() try {
        for (int i = 0; !stopping_ && !is_broken_; ++i) {
            auto const mine = identifier(agent_, "again " + std::to_string(i));
            auto const asked = steady::now();
            auto const worked_before = worked();
            busy_->subscribe(mine);
            is_broken_ = busy_->next() != "confirm " + mine;
            auto const took = since(asked);
            auto const work = worked() - worked_before;
            busy_->unsubscribe(mine);
            auto const memory_now = memory();
            std::lock_guard const lock{mutex_};
            latencies_.push_back(took);
            work_.push_back(std::chrono::duration_cast<milliseconds>(work));
            most_memory_ = std::max(most_memory_, memory_now);
        }
    } catch (std::exception const& e) {
        std::fprintf(stderr, "the busy neighbour: %s\n", e.what());
        is_broken_ = true;
    }

    node const& node_;
    bool with_figures_;
    std::int64_t agent_;
    std::vector<std::unique_ptr<cable>> sitting_;
    std::unique_ptr<cable> busy_;
    std::atomic<bool> stopping_{false};
    std::atomic<bool> is_broken_{false};
    steady::time_point begun_;
    std::mutex mutex_;
    std::vector<milliseconds> latencies_;
    std::vector<milliseconds> work_; // of the node's, in each latency
    double most_memory_ = 0;
    std::thread thread_;
};

} // namespace presenced::tests
