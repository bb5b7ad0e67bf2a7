// What goes to the database next: events and times in, batches out.
#include "db/session/connection.hpp"
#include "db/store/batch_pacing.hpp"
#include "tests/support/catch.hpp"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <limits>
#include <map>

using namespace presenced;
using namespace std::chrono_literals;
using db::batch_pacing;
using db::lane_pacing;
using db::operations;

namespace {

db::lease_token token_of(unsigned long number) {
    db::lease_token token;
    auto const text = std::to_string(number);
    token.text.fill('-');
    std::copy(text.begin(), text.end(), token.text.begin());
    return token;
}

// One lane, and a clock that is moved by hand.
struct table {
    explicit table(unsigned lanes = 1)
        : pacing{lanes} {}

    unsigned long acquire(db::agent_id agent, db::owner_id owner = 1) {
        ++last;
        return pacing.add(db::acquire_request{agent, owner, token_of(last), {}, nullptr, last})
                   ? last
                   : 0;
    }
    unsigned long release(db::agent_id agent, db::owner_id owner = 1) {
        ++last;
        pacing.add(db::release_request{agent, token_of(last), db::release_reason::unsubscribed,
                                       nullptr, last, owner});
        return last;
    }
    operations next(std::size_t limit = 200) {
        operations batch;
        pacing.next(0, limit, now, batch);
        return batch;
    }
    operations next_busy(std::size_t limit = 200) {
        operations batch;
        pacing.next_busy(limit, now, batch);
        return batch;
    }
    void defer(operations batch, std::chrono::milliseconds pause = 0ms) {
        pacing.defer(batch, now + pause, dropped);
    }
    void suspect(operations batch, std::chrono::milliseconds pause = 0ms) {
        pacing.suspect(batch, now, pause, dropped);
    }
    void delay(operations batch, std::chrono::milliseconds pause = 0ms) {
        pacing.delay(batch, now + pause, dropped);
    }
    void give_back(operations batch) { pacing.give_back(batch, dropped); }

    batch_pacing pacing;
    batch_pacing::time_point now{1h};
    operations dropped;
    unsigned long last = 0;
};

std::vector<unsigned long> keys(operations const& batch) {
    std::vector<unsigned long> all;
    for (auto const& op : batch) {
        all.push_back(op.key);
    }
    return all;
}

std::map<db::owner_id, std::size_t> owners(operations const& batch) {
    std::map<db::owner_id, std::size_t> count;
    for (auto const& op : batch) {
        ++count[op.owner];
    }
    return count;
}

using listed = std::vector<unsigned long>;

} // namespace

TEST_CASE("an owner with ten thousand requests leaves the next batch open to another's one") {
    table t;
    for (int i = 0; i < 10'000; ++i) {
        t.acquire(i, 1);
    }
    REQUIRE(t.next().size() == 200);
    auto const one = t.release(3, 2);
    auto const batch = t.next();
    CHECK(batch.size() == 200);
    auto const all = keys(batch);
    CHECK(std::find(all.begin(), all.end(), one) != all.end());
}

TEST_CASE("owners share a batch evenly, and who needs less than a share leaves the rest") {
    table t;
    for (int i = 0; i < 1'000; ++i) {
        t.acquire(i, 1);
        t.acquire(i, 2);
    }
    for (int i = 0; i < 10; ++i) {
        t.acquire(i, 3);
    }
    CHECK(owners(t.next(200)) == std::map<db::owner_id, std::size_t>{{1, 95}, {2, 95}, {3, 10}});
    // From now on the lane is shared: nobody gets more than his share of a batch.
    CHECK(owners(t.next(200)) == std::map<db::owner_id, std::size_t>{{1, 50}, {2, 50}});
}

TEST_CASE("an owner gets whole batches again a second after the last of the others") {
    table t;
    for (int i = 0; i < 2'000; ++i) {
        t.acquire(i, 1);
    }
    CHECK(t.next().size() == 200);
    CHECK(t.next().size() == 200); // nobody else was ever there
    t.acquire(1, 2);
    CHECK(t.next().size() == 200);
    CHECK(t.next().size() == batch_pacing::share);
    t.now += 999ms;
    CHECK(t.next().size() == batch_pacing::share);
    t.now += 1ms;
    CHECK(t.next().size() == 200);
    // Many owners fill a batch together.
    for (int i = 0; i < 2'000; ++i) {
        t.acquire(i, i % 10);
    }
    CHECK(t.next().size() == 200);
    CHECK(t.next().size() == 200);
}

TEST_CASE("an owner's requests keep their order, alone and among others") {
    table t;
    auto const a = t.acquire(7, 1);
    auto const b = t.release(7, 1);
    auto const c = t.acquire(8, 1);
    auto const d = t.acquire(7, 1);
    CHECK(keys(t.next(3)) == listed{a, b, c});
    auto const x = t.acquire(7, 2);
    auto const e = t.release(7, 1);
    CHECK(keys(t.next()) == listed{d, x, e});
}

TEST_CASE("what is given back keeps its order and comes first") {
    table t;
    for (int i = 1; i <= 6; ++i) {
        t.acquire(7, i % 2 == 0 ? 2 : 1);
    }
    auto batch = t.next(4);
    auto const before = keys(batch);
    t.give_back(std::move(batch));
    CHECK(keys(t.next(4)) == before);
    CHECK(t.next().size() == 2);
    CHECK(t.pacing.depth(0) == 0);
}

TEST_CASE("one owner cannot fill the queue for the others") {
    table t;
    for (std::size_t i = 0; i < batch_pacing::acquire_limit; ++i) {
        REQUIRE(t.acquire(static_cast<db::agent_id>(i), 1) != 0);
    }
    CHECK(t.acquire(1, 1) == 0);
    std::size_t others = 0;
    while (t.acquire(1, 2) != 0) {
        ++others;
    }
    CHECK(others == batch_pacing::acquire_limit / 2);
    CHECK(t.acquire(1, 3) != 0);
    CHECK(t.acquire(1, 1) == 0);
    // Leaves are always taken.
    CHECK(t.release(1, 1) != 0);
}

TEST_CASE("an owner is forgotten once all of its requests are answered") {
    table t;
    for (int round = 0; round < 3; ++round) {
        t.acquire(1, 1);
        t.release(2, 1);
        auto batch = t.next();
        CHECK(batch.size() == 2);
        t.pacing.finish(batch);
        CHECK(t.pacing.releases() == 0);
        CHECK(t.next().empty());
    }
}

TEST_CASE("busy: every agent gets its turn however many there are") {
    table t;
    for (int agent = 1; agent <= 20; ++agent) {
        t.acquire(agent);
    }
    t.defer(t.next());
    std::map<db::agent_id, int> turns;
    for (int round = 0; round < 40; ++round) {
        auto batch = t.next_busy(5);
        REQUIRE(batch.size() == 5);
        for (auto const& op : batch) {
            ++turns[op.agent];
        }
        t.now += 1ms;
        t.defer(std::move(batch)); // still busy, all of them
    }
    REQUIRE(turns.size() == 20);
    for (auto const& [agent, count] : turns) {
        CHECK(count == 10);
    }
}

TEST_CASE("busy: an agent with many requests leaves room for the others") {
    table t;
    for (int i = 0; i < 200; ++i) {
        t.acquire(i < 100 ? 1 : 2);
    }
    t.defer(t.next());
    std::map<db::agent_id, std::size_t> seen;
    for (int round = 0; round < 2; ++round) {
        t.now += 1ms;
        auto const batch = t.next_busy(50);
        CHECK(batch.size() == 50);
        seen[batch.front().agent] += batch.size();
    }
    CHECK(seen == std::map<db::agent_id, std::size_t>{{1, 50}, {2, 50}});
    CHECK(t.pacing.busy_depth() == 100);
}

TEST_CASE("busy: an owner's flood of busy agents leaves the next batch open to another's one") {
    table t;
    for (int i = 0; i < 5'000; ++i) {
        t.acquire(i, 1);
    }
    t.defer(t.next(5'000));
    t.now += 1s;
    t.acquire(9'999, 2);
    t.defer(t.next());
    auto batch = t.next_busy(200);
    CHECK(batch.size() == 200);
    CHECK(owners(batch)[2] == 1);
    // Also when that one agent of the flood has more requests than a batch takes.
    table u;
    for (int i = 0; i < 5'000; ++i) {
        u.acquire(7, 1);
    }
    u.acquire(7, 2);
    u.defer(u.next(6'000));
    u.now += 1ms;
    batch = u.next_busy(200);
    CHECK(batch.size() == 200);
    CHECK(owners(batch)[2] == 1);
}

TEST_CASE("busy: nothing comes before it is due, and the next moment is told") {
    table t;
    t.acquire(1, 1);
    t.acquire(2, 2);
    CHECK(t.pacing.next_busy_due() == batch_pacing::time_point::max());
    t.defer(t.next(1), 30ms);
    t.defer(t.next(1), 20ms);
    CHECK(t.next_busy().empty());
    CHECK(t.pacing.next_busy_due() == t.now + 20ms);
    t.now += 20ms;
    CHECK(t.next_busy().size() == 1);
    CHECK(t.pacing.next_busy_due() == t.now + 10ms);
}

TEST_CASE("a suspect goes alone, and takes turns with the others") {
    table t;
    for (int agent = 1; agent <= 3; ++agent) {
        t.acquire(agent);
    }
    t.defer(t.next());
    auto all = t.next_busy(10);
    operations one;
    one.splice(one.begin(), all, all.begin());
    auto const suspected = one.front().agent;
    t.suspect(std::move(one));
    t.defer(std::move(all));
    for (int round = 0; round < 6; ++round) {
        auto batch = t.next_busy(10);
        auto const alone = batch.front().agent == suspected;
        CHECK(alone == (round % 2 == 0)); // the others had the turn before
        CHECK(batch.size() == (alone ? 1U : 2U));
        alone ? t.suspect(std::move(batch)) : t.defer(std::move(batch));
    }
    // What comes for it now does not pass through its lane.
    t.acquire(suspected);
    t.acquire(7);
    auto const batch = t.next(10);
    REQUIRE(batch.size() == 1);
    CHECK(batch.front().agent == 7);
    CHECK(t.pacing.busy_depth() == 4);
}

TEST_CASE("busy: a thousand owners who are due all get their turn before any gets its second") {
    table t;
    for (int round = 0; round < 2; ++round) {
        for (int owner = 1; owner <= 1'000; ++owner) {
            t.acquire(owner + 10'000 * round, owner);
        }
    }
    t.defer(t.next(2'000));
    std::map<db::owner_id, std::size_t> turns;
    for (int batch = 0; batch < 5; ++batch) {
        for (auto const& [owner, count] : owners(t.next_busy(200))) {
            turns[owner] += count;
        }
    }
    CHECK(turns.size() == 1'000);
    CHECK(t.pacing.busy_depth() == 1'000);
}

TEST_CASE("busy: owners who are not due make the batch of another one no slower") {
    // Processor time, of the quickest of some rounds: what else runs does not count.
    auto const cost = [](int sleepers) {
        table t;
        for (int owner = 1; owner <= sleepers; ++owner) {
            t.acquire(owner, owner);
        }
        t.defer(t.next(batch_pacing::acquire_limit), 1h);
        t.acquire(0, 1'000'000);
        t.suspect(t.next(), 1h); // looking for suspects costs no more
        auto best = std::numeric_limits<std::clock_t>::max();
        for (int round = 0; round < 5; ++round) {
            auto const began = std::clock();
            for (int i = 0; i < 200; ++i) {
                auto const key = t.acquire(1'000'000, 2'000'000);
                t.defer(t.next());
                auto const batch = t.next_busy();
                if (keys(batch) != listed{key} || t.pacing.next_busy_due() != t.now + 1h) {
                    return std::numeric_limits<std::clock_t>::max();
                }
                t.pacing.finish(batch);
            }
            best = std::min(best, std::clock() - began);
        }
        return best;
    };
    auto const few = cost(60);
    auto const many = cost(60'000);
    INFO(few << " for few, " << many << " for many");
    CHECK(many < 20 * few);
}

TEST_CASE("a suspect's requests in front of the others take no place of a batch") {
    table t;
    t.acquire(1);
    t.suspect(t.next());
    for (int i = 0; i < 300; ++i) {
        t.acquire(1);
    }
    auto const one = t.acquire(2);
    CHECK(keys(t.next(1)) == listed{one});
    CHECK(t.pacing.busy_depth() == 301);
}

TEST_CASE("a suspect is cleared by a call that ends in time, and by two minutes without one") {
    table t;
    t.acquire(1);
    t.suspect(t.next());
    CHECK(t.pacing.is_suspect(1, t.now));
    auto const batch = t.next_busy();
    REQUIRE(batch.size() == 1);
    t.pacing.finish(batch);
    CHECK_FALSE(t.pacing.is_suspect(1, t.now));
    t.acquire(2);
    t.suspect(t.next());
    CHECK(t.pacing.is_suspect(2, t.now + 119s));
    CHECK_FALSE(t.pacing.is_suspect(2, t.now + 2min));
    // It is news once, for the log.
    auto batch_of_two = t.next_busy();
    CHECK_FALSE(t.pacing.suspect(batch_of_two, t.now, 0ms, t.dropped));
    batch_of_two = t.next_busy();
    CHECK(t.pacing.suspect(batch_of_two, t.now + 3min, 0ms, t.dropped));
}

TEST_CASE("an answer that changed no row, such as another owner's refusal, clears no suspect") {
    table t;
    t.acquire(1, 1);
    t.suspect(t.next());
    auto const foreign = t.acquire(1, 2);
    REQUIRE(t.next().empty()); // it goes to the busy lane
    t.suspect(t.next_busy(), 30s);
    t.now += 30s;
    std::vector<unsigned long> refused;
    for (int round = 0; round < 2; ++round) {
        auto batch = t.next_busy();
        REQUIRE_FALSE(batch.empty());
        if (batch.front().owner == 2) {
            refused = keys(batch);
            batch.front().changed_nothing = true;
            t.pacing.finish(batch);
        } else {
            t.suspect(std::move(batch), 30s);
        }
        CHECK(t.pacing.is_suspect(1, t.now));
    }
    CHECK(refused == listed{foreign});
}

TEST_CASE("a suspect's call that fails puts off the requests of every owner for that agent") {
    table t;
    t.acquire(1, 1);
    t.suspect(t.next());
    t.acquire(1, 2);
    t.acquire(1, 3);
    REQUIRE(t.next().empty());
    auto const batch = t.next_busy();
    REQUIRE(batch.size() == 1);
    t.suspect(batch, 30s);
    CHECK(t.next_busy().empty());
    CHECK(t.pacing.next_busy_due() == t.now + 30s);
    // None of the owners gets in front of the others for ever.
    std::map<db::owner_id, int> turns;
    for (int round = 0; round < 9; ++round) {
        t.now += 30s;
        auto again = t.next_busy();
        REQUIRE(again.size() == 1);
        ++turns[again.front().owner];
        t.suspect(std::move(again), 30s);
        CHECK(t.next_busy().empty());
    }
    CHECK(turns == std::map<db::owner_id, int>{{1, 3}, {2, 3}, {3, 3}});
}

TEST_CASE("an agent that is busy is no suspect, however often its calls pass over it") {
    table t;
    auto const waits = t.acquire(1, 1);
    t.defer(t.next());
    for (int round = 0; round < 100; ++round) {
        t.now += 1s;
        auto batch = t.next_busy();
        REQUIRE(keys(batch) == listed{waits});
        CHECK_FALSE(t.pacing.is_suspect(1, t.now));
        t.defer(std::move(batch), 1s);
    }
    // Others of that owner and that agent's own leaves pass through the lane meanwhile.
    auto const other = t.acquire(2, 1);
    auto const leave = t.release(1, 1);
    CHECK(keys(t.next()) == listed{other, leave});
    // The client gives up: nothing is left of it.
    REQUIRE(t.pacing.abandon(token_of(waits)));
    CHECK(t.pacing.busy_depth() == 0);
    CHECK(t.pacing.next_busy_due() == batch_pacing::time_point::max());
}

TEST_CASE("a request that was delayed comes alone, and leaves its lane to the others") {
    table t;
    for (int n = 1; n <= 5; ++n) {
        t.acquire(7);
    }
    t.delay(t.next(2), 10ms);
    CHECK(t.pacing.next_due(0) == t.now + 10ms);
    t.now += 10ms;
    std::vector<std::size_t> sizes;
    for (int i = 0; i < 3; ++i) {
        sizes.push_back(t.next().size());
    }
    std::sort(sizes.begin(), sizes.end());
    CHECK(sizes == std::vector<std::size_t>{1, 1, 3});
}

TEST_CASE("abandon: wherever an acquire waits, it is given back or turned into a release") {
    table t;
    auto const in_lane = t.acquire(1);
    CHECK(t.pacing.abandon(token_of(in_lane))->key == in_lane);
    CHECK(t.next().empty());

    auto const delayed = t.acquire(1);
    t.delay(t.next(), 1s);
    CHECK(t.pacing.abandon(token_of(delayed))->key == delayed);
    t.now += 1s;
    CHECK(t.next().empty());

    auto const in_flight = t.acquire(1);
    auto batch = t.next();
    CHECK_FALSE(t.pacing.abandon(token_of(in_flight)));
    t.give_back(std::move(batch));
    CHECK(keys(t.dropped) == listed{in_flight});
    CHECK(t.next().empty());

    auto const maybe_done = t.acquire(1);
    batch = t.next();
    batch.front().maybe_done = true;
    t.defer(std::move(batch));
    CHECK_FALSE(t.pacing.abandon(token_of(maybe_done)));
    batch = t.next_busy();
    REQUIRE(keys(batch) == listed{maybe_done});
    CHECK(batch.front().what == db::operation::kind::release);
    CHECK(batch.front().released_outcome() == db::lease_outcome::abandoned);
    t.pacing.finish(batch);
    CHECK(t.pacing.releases() == 0);
}

TEST_CASE("what a failed call says of its requests") {
    using db::call_verdict;
    using db::fault;
    struct row {
        fault kind;
        char const* sqlstate;
        std::size_t requests;
        bool waits;
        std::chrono::milliseconds took;
        call_verdict says;
    };
    row const table[] = {
        {fault::element, "23514", 200, false, 5ms, call_verdict::split},
        {fault::element, "23514", 1, false, 5ms, call_verdict::blame},
        {fault::element, "42883", 2, false, 5ms, call_verdict::split},
        {fault::passing, "57014", 200, false, 3s, call_verdict::overran},
        {fault::passing, "57014", 1, true, 3s, call_verdict::overran},
        {fault::passing, "55P03", 1, true, 50ms, call_verdict::busy},
        {fault::passing, "55P03", 1, false, 500ms, call_verdict::locked},
        {fault::passing, "55P03", 200, false, 500ms, call_verdict::locked},
        {fault::passing, "40P01", 200, false, 5ms, call_verdict::failed},
        {fault::connection, "", 200, false, 5ms, call_verdict::failed},
        {fault::connection, "57P01", 200, false, 5ms, call_verdict::failed},
        {fault::connection, "", 200, false, 4s, call_verdict::late},
        {fault::connection, "", 1, true, 4s, call_verdict::late},
    };
    for (auto const& r : table) {
        INFO(r.sqlstate << ", " << r.requests << " requests");
        CHECK(db::judge(db::call_failure{r.kind, r.sqlstate, true, ""}, r.requests, r.waits, r.took,
                        3s) == r.says);
    }
}

TEST_CASE("a lane halves its batches until they get through, and doubles them again") {
    lane_pacing lane;
    CHECK(lane.limit() == 200);
    lane_pacing::account failed{.requests = 200, .again = true, .failed = true};
    CHECK(lane.after(failed).again == lane_pacing::decision::way::front);
    CHECK(lane.limit() == 100);
    failed.requests = 100;
    lane.after(failed);
    CHECK(lane.limit() == 50);
    lane.after({.requests = 50});
    lane.after({.requests = 50});
    CHECK(lane.limit() == 200);
    // Alone and for the third time: the others come first.
    failed = {.requests = 1, .again = true, .failed = true, .failures = 1};
    CHECK(lane.after(failed).again == lane_pacing::decision::way::front);
    failed.failures = 2;
    auto const third = lane.after(failed);
    CHECK(third.again == lane_pacing::decision::way::delay);
    CHECK(third.pause == 200ms);
}

TEST_CASE("a commit that waits makes no batch smaller and nobody a suspect") {
    lane_pacing lane;
    lane_pacing::account const late{.requests = 200, .again = true, .late = true};
    for (int i = 0; i < 3; ++i) {
        auto const what = lane.after(late);
        CHECK(what.again == lane_pacing::decision::way::front);
        CHECK(what.rest == 0ms);
        CHECK(lane.limit() == 200);
    }
    // It is not one that waits for ever: a request in it may do so at its commit.
    lane.after(late);
    CHECK(lane.limit() == 100);
    lane.after({.requests = 100});
    lane.after(late);
    CHECK(lane.limit() == 200);
}

TEST_CASE("a lane that meets a lock sends small batches until all of the first have been through") {
    lane_pacing lane;
    auto const first = lane.after({.requests = 200, .again = true, .locked = true});
    CHECK(first.again == lane_pacing::decision::way::front);
    CHECK(first.rest == 50ms);
    CHECK(lane.limit() == 10);
    for (int i = 0; i < 10; ++i) {
        lane.after({.requests = 10});
        CHECK(lane.limit() == 10);
    }
    lane.after({.requests = 10, .again = true, .locked = true});
    CHECK(lane.limit() == 1);
    auto const alone = lane.after({.requests = 1, .again = true, .locked = true});
    CHECK(alone.again == lane_pacing::decision::way::suspect);
}
