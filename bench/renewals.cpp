#include "bench/renewals.hpp"

#include "bench/machine.hpp"
#include "db/postgres_store.hpp"

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include <unistd.h>

namespace presenced::bench {

namespace {

using namespace std::chrono_literals;
namespace asio = boost::asio;
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

class renewing final : public db::mailbox {
public:
    struct lease {
        db::agent_id agent;
        db::owner_id owner;
        db::lease_token token;
        std::size_t rounds = 0; // still to go
    };

    explicit renewing(std::vector<lease> all)
        : leases_{std::move(all)} {}

    void acquire(db::store& store) {
        store_ = &store;
        left_ = leases_.size();
        for (std::size_t i = 0; i < leases_.size(); ++i) {
            auto const& l = leases_[i];
            store.acquire({l.agent, l.owner, l.token, std::nullopt, this, i});
        }
        wait("acquired");
    }

    void renew(std::size_t rounds) {
        left_ = leases_.size();
        for (auto& l : leases_) {
            l.rounds = rounds;
        }
        for (std::size_t i = 0; i < leases_.size(); ++i) {
            ask(i);
        }
        wait("renewed");
    }

    void release() {
        left_ = leases_.size();
        for (std::size_t i = 0; i < leases_.size(); ++i) {
            auto const& l = leases_[i];
            store_->release({l.agent, l.token, db::release_reason::disconnected, this, i});
        }
        wait("released");
    }

    // As a shard does: the store's thread is not kept from its next batch.
    void deliver(std::vector<db::lease_answer> answers) override {
        asio::post(worker_, [this, all = std::move(answers)] { take(all); });
    }
    void deliver(std::vector<db::token_answer>) override {}
    void deliver_ended(std::vector<db::token_id>) override {}
    void database_back() override {}

private:
    void take(std::vector<db::lease_answer> const& answers) {
        std::size_t done = 0;
        for (auto const& a : answers) {
            if (a.outcome == db::lease_outcome::missing ||
                a.outcome == db::lease_outcome::refused) {
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

    void ask(std::size_t i) {
        auto const& l = leases_[i];
        store_->renew({l.agent, l.token, this, i});
    }

    void wait(char const* what) {
        std::unique_lock lock{mutex_};
        if (!changed_.wait_for(lock, 120s, [this] { return left_ == 0; }) || bad_) {
            throw std::runtime_error{std::string{"not all leases were "} + what};
        }
    }

    // An element belongs to whoever is about to ask or was answered: one thread at a time.
    std::vector<lease> leases_;
    db::store* store_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::size_t left_ = 0;
    std::atomic<bool> bad_ = false;
    asio::thread_pool worker_{1}; // last: what is posted to it uses the rest
};

std::vector<renewing::lease> leases_of(database& link, std::size_t count) {
    std::vector<renewing::lease> all(count);
    // Random, so that neighbours in the index are none in the table; the same in every run.
    std::mt19937 random{1};
    std::uniform_int_distribution<int> letter{'A', 'Z'};
    for (auto& one : all) {
        std::generate(one.token.text.begin(), one.token.text.end(),
                      [&] { return static_cast<char>(letter(random)); });
    }
    auto const list = link.value("SELECT string_agg(id || ' ' || owner_id, ' ') FROM (SELECT id, "
                                 "owner_id FROM agents ORDER BY id LIMIT " +
                                 std::to_string(count) + ") a");
    std::istringstream numbers{list};
    for (auto& one : all) {
        if (!(numbers >> one.agent >> one.owner)) {
            throw std::runtime_error{"fewer agents than leases"};
        }
    }
    return all;
}

} // namespace

nlohmann::ordered_json renew(renewal_plan const& p) {
    spdlog::set_level(spdlog::level::off); // what goes to stdout is the result
    database link{p.database};
    counting_observer watcher;
    renewing leases{leases_of(link, p.leases)};
    db::postgres_options options;
    options.conninfo = p.database;
    options.node = "bench";
    options.boot_id = std::to_string(::getpid());
    options.version = "bench";
    auto const store = db::make_postgres_store(options, watcher);
    leases.acquire(*store);
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
