// What the tests of the store share: a mailbox that remembers, and a store as a node has it.
#pragma once

#include "db/store/postgres_store.hpp"
#include "tests/db/roles.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/postgres.hpp"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace presenced::tests {

// tests/support has a node and a world, too, with a process of its own in each: other classes,
// other names.
inline namespace in_process {

using namespace std::chrono_literals;
using db::lease_outcome;
using db::lease_token;
using db::release_reason;
using db::token_outcome;

// Keeps every answer, by key.
class inbox final : public db::mailbox {
public:
    void deliver(std::vector<db::lease_answer> answers) override {
        std::lock_guard const lock{mutex_};
        for (auto const& a : answers) {
            leases_[a.key].push_back(a.outcome);
        }
    }
    void deliver(std::vector<db::token_answer> answers) override {
        std::lock_guard const lock{mutex_};
        for (auto const& a : answers) {
            tokens_.insert_or_assign(a.key, a);
        }
    }
    void deliver(db::check_answer answer) override {
        std::lock_guard const lock{mutex_};
        checks_.push_back(std::move(answer));
    }
    void database_back() override { ++backs; }

    // All answers that came for a key; more than one is a defect.
    std::vector<lease_outcome> outcomes(std::uint64_t key) const {
        std::lock_guard const lock{mutex_};
        auto const found = leases_.find(key);
        return found == leases_.end() ? std::vector<lease_outcome>{} : found->second;
    }
    std::size_t count(lease_outcome outcome) const {
        std::lock_guard const lock{mutex_};
        std::size_t n = 0;
        for (auto const& [key, outcomes] : leases_) {
            for (auto const o : outcomes) {
                n += o == outcome ? 1U : 0U;
            }
        }
        return n;
    }
    std::size_t answered() const {
        std::lock_guard const lock{mutex_};
        return leases_.size();
    }
    std::map<std::uint64_t, db::token_answer> tokens() const {
        std::lock_guard const lock{mutex_};
        return tokens_;
    }
    std::vector<db::check_answer> checks() const {
        std::lock_guard const lock{mutex_};
        return checks_;
    }

    std::atomic<int> backs{0};

private:
    mutable std::mutex mutex_;
    std::map<std::uint64_t, std::vector<lease_outcome>> leases_;
    std::map<std::uint64_t, db::token_answer> tokens_;
    std::vector<db::check_answer> checks_;
};

// Counts calls that failed, and requests by the lane that took them.
class failure_counter final : public db::observer {
public:
    void batch(std::string_view lane, std::size_t elements) override {
        std::lock_guard const lock{mutex_};
        taken_[std::string{lane}] += elements;
    }
    // What PostgreSQL said beside its answers.
    std::atomic<int> warnings{0};
    // How often a lane took a request: more often than there are requests, if it took some again.
    std::size_t taken_by(std::string const& lane) const {
        std::lock_guard const lock{mutex_};
        auto const found = taken_.find(lane);
        return found == taken_.end() ? 0 : found->second;
    }
    void statement(std::string_view name, std::chrono::nanoseconds /*took*/,
                   bool succeeded) override {
        std::lock_guard const lock{mutex_};
        failures_[std::string{name}] += succeeded ? 0 : 1;
        ++calls_[std::string{name}];
    }
    int called(std::string const& name) const {
        std::lock_guard const lock{mutex_};
        auto const found = calls_.find(name);
        return found == calls_.end() ? 0 : found->second;
    }
    void database_up(bool up) override { outages_ += up ? 0 : 1; }
    void warned() override { ++warnings; }
    // How often the database was said to be away.
    int outages() const { return outages_; }
    int of(std::string const& name) const {
        std::lock_guard const lock{mutex_};
        auto const found = failures_.find(name);
        return found == failures_.end() ? 0 : found->second;
    }

private:
    mutable std::mutex mutex_;
    std::map<std::string, int> failures_;
    std::map<std::string, int> calls_;
    std::atomic<int> outages_{0};
    std::map<std::string, std::size_t> taken_;
};

inline lease_token make_token(std::string const& prefix, unsigned long number) {
    char text[32];
    std::snprintf(text, sizeof text, "%s-%022lu", prefix.c_str(), number);
    lease_token token;
    // The last digits tell tokens apart, the first letters nodes.
    auto const* const digits = text + std::strlen(text) - (token.text.size() - prefix.size());
    std::memcpy(token.text.data(), prefix.data(), prefix.size());
    std::memcpy(token.text.data() + prefix.size(), digits, token.text.size() - prefix.size());
    return token;
}

// Timings that let a test see a lease run out: stale after 2.4 s, a tick every 40 ms.
inline presence::settings quick() {
    presence::settings s;
    s.heartbeat = 500ms;
    s.stale_after = 2'400ms;
    s.sweep = 200ms;
    return s;
}

// A store with its mailbox, on one database.
class node {
public:
    explicit node(std::string const& conninfo, std::string name = "a",
                  presence::settings timings = {}, std::chrono::milliseconds call_timeout = 3s)
        : name_{std::move(name)} {
        db::postgres_options options;
        options.conninfo = as_server(conninfo);
        options.node = name_;
        options.boot_id = name_ + "-boot";
        options.version = "test";
        options.timings = timings;
        options.call_timeout = call_timeout;
        store = db::make_postgres_store(std::move(options), failures);
        store->subscribe_to_outages(box);
    }

    // Each returns the key that its answer will have.
    std::uint64_t acquire(db::agent_id agent, lease_token const& token, db::owner_id owner = 1) {
        store->acquire({agent, owner, token, {}, &box, ++key_});
        return key_;
    }
    std::uint64_t acquire(db::agent_id agent, lease_token const& token, db::owner_id owner,
                          std::string session_id) {
        store->acquire({agent, owner, token, std::move(session_id), &box, ++key_});
        return key_;
    }
    std::uint64_t release(db::agent_id agent, lease_token const& token,
                          release_reason why = release_reason::unsubscribed) {
        store->release({agent, token, why, &box, ++key_});
        return key_;
    }
    std::uint64_t renew(db::agent_id agent, lease_token const& token) {
        store->renew({agent, token, &box, ++key_});
        return key_;
    }
    std::uint64_t authenticate(unsigned char first_byte) {
        db::token_digest digest{};
        digest[0] = first_byte;
        store->authenticate({digest, &box, ++key_});
        return key_;
    }

    // Waits for an answer, and that it is the only one.
    bool got(std::uint64_t key, lease_outcome outcome, std::chrono::milliseconds within = 10s) {
        return eventually([&] { return !box.outcomes(key).empty(); }, within) &&
               box.outcomes(key) == std::vector{outcome};
    }
    bool is_up(std::chrono::milliseconds within = 10s) {
        return eventually(
            [&] {
                auto const h = store->health();
                return h.reachable && h.writable;
            },
            within);
    }
    lease_token token() { return make_token(name_, ++tokens_); }
    std::string const& name() const { return name_; }

    // These outlive the store.
    inbox box;
    failure_counter failures;
    std::unique_ptr<db::store> store;

private:
    std::string name_;
    std::uint64_t key_ = 0;
    unsigned long tokens_ = 0;
};

// A fresh database with agents 1 to 9 of owner 1, a session on it, and a node.
struct world {
    explicit world(presence::settings timings = {},
                   std::string database = postgres::shared().create_database())
        : conninfo{std::move(database)}
        , sql{conninfo} {
        sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(1, 9) g");
        sql.query("UPDATE presence_clock SET stale_after = interval '" +
                  std::to_string(timings.stale_after.count()) + " milliseconds'");
    }

    bool flag(db::agent_id agent) {
        return sql.value("SELECT routing_active FROM agents WHERE id = " + std::to_string(agent)) ==
               "t";
    }
    long rows(std::string const& where = "true") {
        return sql.number("SELECT count(*) FROM agent_subscriptions WHERE " + where);
    }
    // A trigger of somebody else's that does `action` to rows for which `condition` holds.
    void add_trigger(std::string const& event, std::string const& condition,
                     std::string const& action) {
        sql.query("CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF " +
                  condition + " THEN " + action +
                  "; END IF; RETURN NEW; END $$;"
                  "CREATE TRIGGER theirs BEFORE " +
                  event + " ON agent_subscriptions FOR EACH ROW EXECUTE FUNCTION theirs()");
    }
    void drop_trigger() { sql.query("DROP TRIGGER theirs ON agent_subscriptions"); }
    // The backends of presenced in this database that are in the middle of a statement so named.
    std::vector<pid_t> backends(std::string const& condition) {
        std::vector<pid_t> pids;
        for (auto const& line :
             sql.query("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND "
                       "application_name = 'presenced' AND " +
                       condition)) {
            pids.push_back(std::stoi(line[0]));
        }
        return pids;
    }
    void terminate_all() {
        sql.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                  "WHERE datname = current_database() AND application_name = 'presenced'");
    }

    std::string conninfo;
    sql_session sql;
};

} // namespace in_process

} // namespace presenced::tests
