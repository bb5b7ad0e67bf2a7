// Leases without sockets: asks one store for many leases, renews and releases them.
#pragma once

#include "db/store/postgres_store.hpp"

#include <boost/asio/thread_pool.hpp>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

namespace presenced::bench {

class database;

struct bench_lease {
    db::agent_id agent;
    db::owner_id owner;
    db::lease_token token;
    std::size_t rounds = 0; // renewals still to go
};

// `count` leases with new tokens, one on each of the agents of the database that come behind the
// first `skip`, in the order of their ids. Throws std::runtime_error when there are fewer agents.
std::vector<bench_lease> leases_of(database& link, std::size_t count, std::size_t skip = 0);

// What a store of this process is made with.
db::postgres_options options_of(std::string const& conninfo, std::string const& node);

// One thread's, but for what the store delivers. Every member but the constructor throws
// std::runtime_error when an answer does not come, or is not the one that was hoped for.
class lease_driver final : public db::mailbox {
public:
    lease_driver(db::store& store, std::vector<bench_lease> leases);

    void acquire();
    // Each lease is renewed again as soon as its renewal is answered, `rounds` times.
    void renew(std::size_t rounds);
    // Each lease is renewed once every heartbeat, all of them evenly spread over it, until
    // `deadline`. Returns how many renewals were asked for.
    std::size_t hold(std::chrono::milliseconds heartbeat,
                     std::chrono::steady_clock::time_point deadline);
    void release();
    // One lease is acquired, or released; returns how long the answer took.
    std::chrono::nanoseconds acquire_one(std::size_t index);
    std::chrono::nanoseconds release_one(std::size_t index);

    std::size_t size() const { return leases_.size(); }

    // As a shard does: the store's thread is not kept from its next batch.
    void deliver(std::vector<db::lease_answer> answers) override;
    void deliver(std::vector<db::token_answer>) override {}
    void deliver(db::check_answer) override {}
    void database_back() override {}

private:
    void take(std::vector<db::lease_answer> const& answers);
    void expect(std::size_t answers);
    void ask(std::size_t index);
    void wait(char const* what);

    db::store& store_;
    // An element belongs to whoever is about to ask or was answered: one thread at a time.
    std::vector<bench_lease> leases_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::size_t left_ = 0; // answers that are still to come
    std::atomic<bool> bad_ = false;
    boost::asio::thread_pool worker_{1}; // last: what is posted to it uses the rest
};

} // namespace presenced::bench
