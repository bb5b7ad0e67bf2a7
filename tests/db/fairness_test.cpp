// One owner who asks as fast as he gets answers, and another one.
#include "db/store/batch_pacing.hpp"
#include "tests/db/altered_function.hpp"

#include <algorithm>
#include <cstdio>
#include <thread>

using namespace presenced;
using namespace presenced::tests;

namespace {

// Subscribes and unsubscribes `sessions` times at once, each again as soon as it has its answer.
class flooder final : public db::mailbox {
public:
    flooder(db::store& store, std::vector<db::agent_id> agents, std::size_t sessions)
        : store_{store}
        , agents_{std::move(agents)}
        , tokens_(sessions) {
        for (std::size_t i = 0; i < sessions; ++i) {
            subscribe(i);
        }
    }

    void deliver(std::vector<db::lease_answer> answers) override {
        for (auto const& a : answers) {
            ++answered[lane_of(agent_of(a.key))];
            if (stopping) {
                --standing_;
            } else if (a.outcome == lease_outcome::acquired) {
                store_.release({agent_of(a.key), tokens_[a.key], release_reason::unsubscribed, this,
                                a.key, 1});
            } else {
                subscribe(a.key);
            }
        }
    }
    void deliver(std::vector<db::token_answer> /*answers*/) override {}
    void deliver(db::check_answer /*answer*/) override {}
    void database_back() override {}

    bool has_stopped() const { return standing_ == 0; }
    static std::size_t lane_of(db::agent_id agent) { return static_cast<std::size_t>(agent) % 2; }

    std::atomic<std::size_t> answered[2] = {};
    std::atomic<bool> stopping{false};

private:
    db::agent_id agent_of(std::uint64_t key) const { return agents_[key % agents_.size()]; }
    void subscribe(std::uint64_t key) {
        tokens_[key] = make_token("f", ++last_);
        store_.acquire({agent_of(key), 1, tokens_[key], {}, this, key});
    }

    db::store& store_;
    std::vector<db::agent_id> agents_;
    std::vector<lease_token> tokens_;
    std::atomic<unsigned long> last_{0};
    std::atomic<std::size_t> standing_{tokens_.size()};
};

// Of another owner, who asks for one thing at a time. Notes when its answer was delivered, and how
// many answers of its lane the flood had had by then.
class other final : public db::mailbox {
public:
    void deliver(std::vector<db::lease_answer> answers) override {
        for (auto const& a : answers) {
            if (a.outcome == lease_outcome::acquired) {
                at = std::chrono::steady_clock::now();
                flood_had = flood == nullptr ? 0 : flood->answered[a.key % 2].load();
                ++acquired;
            }
        }
    }
    void deliver(std::vector<db::token_answer> /*answers*/) override {}
    void deliver(db::check_answer /*answer*/) override {}
    void database_back() override {}

    flooder const* flood = nullptr;
    std::chrono::steady_clock::time_point at; // these two are read once `acquired` has counted it
    std::size_t flood_had = 0;
    std::atomic<int> acquired{0};
};

double p99(std::vector<double>& all) {
    std::sort(all.begin(), all.end());
    return all[all.size() * 99 / 100];
}

} // namespace

TEST_CASE("P9: an owner's flood is answered in turn with another owner's single requests",
          "[db][fault]") {
    world w;
    w.sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(11, 510) g;"
                "INSERT INTO agents (id, owner_id) SELECT g, 2 FROM generate_series(1001, 1100) g");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    other one;
    std::size_t most = 0;
    auto const probe = [&] {
        std::vector<double> took;
        most = 0;
        for (db::agent_id agent = 1'001; agent <= 1'100; ++agent) {
            auto const lane = flooder::lane_of(agent);
            auto const token = a.token();
            auto const answered = one.acquired.load();
            auto const before = one.flood == nullptr ? 0 : one.flood->answered[lane].load();
            auto const asked = std::chrono::steady_clock::now();
            a.store->acquire({agent, 2, token, {}, &one, static_cast<std::uint64_t>(agent)});
            REQUIRE(eventually([&] { return one.acquired > answered; }));
            took.push_back(std::chrono::duration<double, std::milli>(one.at - asked).count());
            most = std::max(most, one.flood_had - before);
            a.store->release({agent, token, release_reason::unsubscribed, &one, 0, 2});
        }
        return p99(took);
    };
    auto const alone = probe();
    std::vector<db::agent_id> agents;
    for (db::agent_id g = 11; g <= 510; ++g) {
        agents.push_back(g);
    }
    flooder flood{*a.store, agents, 5'000};
    REQUIRE(eventually([&] { return flood.answered[0] > 1'000 && flood.answered[1] > 1'000; }));
    one.flood = &flood;
    auto const beside = probe();
    std::printf("another owner's acquire, ms, 99 %%: %.1f alone, %.1f beside 5,000 of one owner; "
                "at most %zu of its lane answered in between\n",
                alone, beside, most);
    // The batch that was under way and its own; and one that ended while this thread was asking.
    CHECK(most <= 3 * db::lane_pacing::batch_limit);
    flood.stopping = true;
    CHECK(eventually([&] { return flood.has_stopped(); }, 30s));
}

TEST_CASE("P9: an owner whose agents are told to wait delays no other owner", "[db][fault]") {
    world w;
    w.sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(11, 2010) g;"
                "INSERT INTO agents (id, owner_id) SELECT g, 2 FROM generate_series(3001, 3009) g");
    // As for an agent whose acquires have to wait for their turn.
    altered_function theirs{
        w, "presenced_transition",
        "outcomes := ARRAY(SELECT CASE WHEN o.id < 3000 AND o.kind = 'acquire' THEN 'busy' "
        "ELSE o.outcome END FROM unnest(outcomes, agent_ids, kinds) WITH ORDINALITY "
        "AS o (outcome, id, kind, n) ORDER BY o.n)"};
    node a{w.conninfo};
    REQUIRE(a.is_up());
    std::vector<std::uint64_t> waiting;
    std::vector<lease_token> tokens;
    for (int i = 0; i < 2'000; ++i) {
        tokens.push_back(a.token());
        waiting.push_back(a.acquire(11 + i, tokens.back()));
    }
    // Another owner's agent that is held for a moment goes through the busy lane, too.
    sql_session holder{w.conninfo};
    for (int i = 1; i <= 9; ++i) {
        holder.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(3000 + i) +
                     " FOR UPDATE");
        auto const key = a.acquire(3000 + i, a.token(), 2);
        auto const other = a.acquire(3000 + i % 9 + 1, a.token(), 2);
        CHECK(a.got(other, lease_outcome::acquired));
        CHECK(a.box.outcomes(key).empty());
        auto const before = a.failures.taken_by("busy");
        holder.query("COMMIT");
        CHECK(a.got(key, lease_outcome::acquired));
        // It had its turn among the first: a second's pause, and a batch each way.
        CHECK(a.failures.taken_by("busy") - before < 10'000);
    }
    CHECK(a.failures.of("transition") == 0);
    CHECK(a.box.count(lease_outcome::acquired) == 18);
    // Who gives up is gone from there.
    for (std::size_t i = 0; i < 1'000; ++i) {
        a.store->abandon(static_cast<db::agent_id>(11 + i), tokens[i]);
    }
    theirs.end();
    CHECK(eventually([&] {
        return a.box.count(lease_outcome::acquired) + a.box.count(lease_outcome::abandoned) ==
               2'018;
    }));
    CHECK(a.is_up());
}
