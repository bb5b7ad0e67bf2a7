#include "bench/lease_driver.hpp"

#include "bench/machine.hpp"

#include <boost/asio/post.hpp>

#include <algorithm>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

#include <unistd.h>

namespace presenced::bench {

namespace {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

// A store refuses acquires when more than 65,536 wait.
constexpr std::size_t acquires_at_a_time = 50'000;
constexpr auto answer_limit = 300s;
// How often hold() asks: as often as a store sends a batch of renewals at the default timings.
constexpr auto hold_step = 250ms;

} // namespace

std::vector<bench_lease> leases_of(database& link, std::size_t count, std::size_t skip) {
    std::vector<bench_lease> all(count);
    // Random, so that neighbours in the index are none in the table; the same in every run.
    std::mt19937 random{1 + static_cast<unsigned>(skip)};
    std::uniform_int_distribution<int> letter{'A', 'Z'};
    for (auto& one : all) {
        std::generate(one.token.text.begin(), one.token.text.end(),
                      [&] { return static_cast<char>(letter(random)); });
    }
    auto const list = link.value("SELECT string_agg(id || ' ' || owner_id, ' ') FROM (SELECT id, "
                                 "owner_id FROM agents ORDER BY id OFFSET " +
                                 std::to_string(skip) + " LIMIT " + std::to_string(count) + ") a");
    std::istringstream numbers{list};
    for (auto& one : all) {
        if (!(numbers >> one.agent >> one.owner)) {
            throw std::runtime_error{"fewer agents than leases"};
        }
    }
    return all;
}

db::postgres_options options_of(std::string const& conninfo, std::string const& node) {
    db::postgres_options options;
    options.conninfo = conninfo;
    options.node = node;
    options.boot_id = std::to_string(::getpid());
    options.version = "bench";
    return options;
}

lease_driver::lease_driver(db::store& store, std::vector<bench_lease> leases)
    : store_{store}
    , leases_{std::move(leases)} {}

void lease_driver::acquire() {
    for (std::size_t from = 0; from < leases_.size(); from += acquires_at_a_time) {
        auto const to = std::min(leases_.size(), from + acquires_at_a_time);
        expect(to - from);
        for (std::size_t i = from; i < to; ++i) {
            auto const& l = leases_[i];
            store_.acquire({l.agent, l.owner, l.token, std::nullopt, this, i});
        }
        wait("acquired");
    }
}

void lease_driver::renew(std::size_t rounds) {
    expect(leases_.size());
    for (auto& l : leases_) {
        l.rounds = rounds;
    }
    for (std::size_t i = 0; i < leases_.size(); ++i) {
        ask(i);
    }
    wait("renewed");
}

std::size_t lease_driver::hold(std::chrono::milliseconds heartbeat, steady::time_point deadline) {
    auto const steps = static_cast<std::size_t>(std::max<std::int64_t>(1, heartbeat / hold_step));
    for (auto& l : leases_) {
        l.rounds = 1;
    }
    std::size_t asked = 0;
    auto next = steady::now();
    for (std::size_t step = 0; next < deadline; step = (step + 1) % steps, next += hold_step) {
        std::this_thread::sleep_until(next);
        auto const from = leases_.size() * step / steps;
        auto const to = leases_.size() * (step + 1) / steps;
        expect(to - from);
        for (auto i = from; i < to; ++i) {
            leases_[i].rounds = 1;
            ask(i);
        }
        asked += to - from;
    }
    wait("renewed");
    return asked;
}

void lease_driver::release() {
    expect(leases_.size());
    for (std::size_t i = 0; i < leases_.size(); ++i) {
        auto const& l = leases_[i];
        store_.release({l.agent, l.token, db::release_reason::disconnected, this, i});
    }
    wait("released");
}

std::chrono::nanoseconds lease_driver::acquire_one(std::size_t index) {
    auto const& l = leases_.at(index);
    expect(1);
    auto const start = steady::now();
    store_.acquire({l.agent, l.owner, l.token, std::nullopt, this, index});
    wait("acquired");
    return steady::now() - start;
}

std::chrono::nanoseconds lease_driver::release_one(std::size_t index) {
    auto const& l = leases_.at(index);
    expect(1);
    auto const start = steady::now();
    store_.release({l.agent, l.token, db::release_reason::disconnected, this, index});
    wait("released");
    return steady::now() - start;
}

void lease_driver::deliver(std::vector<db::lease_answer> answers) {
    boost::asio::post(worker_, [this, all = std::move(answers)] { take(all); });
}

void lease_driver::take(std::vector<db::lease_answer> const& answers) {
    std::size_t done = 0;
    for (auto const& a : answers) {
        if (a.outcome == db::lease_outcome::missing || a.outcome == db::lease_outcome::refused) {
            bad_ = true;
        }
        if (a.outcome == db::lease_outcome::renewed && --leases_[a.key].rounds > 0) {
            ask(a.key);
        } else {
            ++done;
        }
    }
    std::lock_guard const lock{mutex_};
    left_ -= done;
    changed_.notify_one();
}

void lease_driver::expect(std::size_t answers) {
    std::lock_guard const lock{mutex_};
    left_ += answers;
}

void lease_driver::ask(std::size_t index) {
    auto const& l = leases_[index];
    store_.renew({l.agent, l.token, this, index});
}

void lease_driver::wait(char const* what) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait_for(lock, answer_limit, [this] { return left_ == 0; }) || bad_) {
        throw std::runtime_error{std::string{"not all leases were "} + what};
    }
}

} // namespace presenced::bench
