#include "db/transition_queue.hpp"
#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

// Everything that was asked for, found busy at once.
void make_busy(db::transition_queue& queue, int agents, int each) {
    unsigned long number = 0;
    for (int agent = 1; agent <= agents; ++agent) {
        for (int i = 0; i < each; ++i) {
            queue.push(
                db::acquire_request{agent, 1, make_token("q", ++number), {}, nullptr, number});
        }
    }
    auto all = queue.take(0, 10'000);
    REQUIRE(all.size() == static_cast<std::size_t>(agents * each));
    CHECK(queue.defer(std::move(all), 0ms).empty());
}

} // namespace

TEST_CASE("busy: every agent gets its turn however many there are", "[queue]") {
    db::transition_queue queue{1};
    make_busy(queue, 20, 1);
    std::map<db::agent_id, int> turns;
    for (int round = 0; round < 40; ++round) {
        auto batch = queue.take_busy(5);
        REQUIRE(batch.size() == 5);
        for (auto const& op : batch) {
            ++turns[op.agent];
        }
        CHECK(queue.defer(std::move(batch), 0ms).empty()); // still busy, all of them
    }
    REQUIRE(turns.size() == 20);
    for (auto const& [agent, count] : turns) {
        CHECK(count == 10);
    }
}

TEST_CASE("busy: an agent with many requests leaves room for the others", "[queue]") {
    db::transition_queue queue{1};
    make_busy(queue, 2, 100);
    std::map<db::agent_id, std::size_t> seen;
    for (int round = 0; round < 2; ++round) {
        auto const batch = queue.take_busy(50);
        CHECK(batch.size() == 50);
        seen[batch.front().agent] += batch.size();
    }
    CHECK(seen == std::map<db::agent_id, std::size_t>{{1, 50}, {2, 50}});
    CHECK(queue.busy_depth() == 100);
}

TEST_CASE("busy: a suspect goes alone, and takes turns with the others", "[queue]") {
    db::transition_queue queue{1};
    make_busy(queue, 3, 1);
    auto all = queue.take_busy(10);
    db::operations one;
    one.splice(one.begin(), all, all.begin());
    auto const suspected = one.front().agent;
    CHECK(queue.suspect(std::move(one), 0ms).empty());
    CHECK(queue.defer(std::move(all), 0ms).empty());
    for (int round = 0; round < 6; ++round) {
        auto batch = queue.take_busy(10);
        auto const alone = batch.front().agent == suspected;
        CHECK(alone == (round % 2 == 0)); // the others had the turn before
        CHECK(batch.size() == (alone ? 1U : 2U));
        CHECK((alone ? queue.suspect(std::move(batch), 0ms) : queue.defer(std::move(batch), 0ms))
                  .empty());
    }
    // What comes for it now does not pass through its lane.
    queue.push(db::acquire_request{suspected, 1, make_token("n", 1), {}, nullptr, 1});
    queue.push(db::acquire_request{7, 1, make_token("n", 2), {}, nullptr, 2});
    auto const batch = queue.take(0, 10);
    REQUIRE(batch.size() == 1);
    CHECK(batch.front().agent == 7);
    CHECK(queue.busy_depth() == 4);
}

TEST_CASE("a request that was delayed leaves its lane alone", "[queue]") {
    db::transition_queue queue{1};
    for (unsigned long n = 1; n <= 5; ++n) {
        queue.push(db::acquire_request{7, 1, make_token("d", n), {}, nullptr, n});
    }
    CHECK(queue.delay(queue.take(0, 2), 0ms).empty());
    std::vector<std::size_t> sizes;
    for (int i = 0; i < 3; ++i) {
        sizes.push_back(queue.take(0, 10).size());
    }
    std::sort(sizes.begin(), sizes.end());
    CHECK(sizes == std::vector<std::size_t>{1, 1, 3});
}
