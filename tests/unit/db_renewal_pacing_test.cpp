// Which leases are renewed next, and which are vouched for: events and times in, batches out.
#include "db/session/connection.hpp"
#include "db/store/renewal_pacing.hpp"
#include "tests/support/catch.hpp"

#include <algorithm>
#include <string>

using namespace presenced;
using namespace std::chrono_literals;
using db::lease_outcome;
using db::renewal_pacing;

namespace {

db::lease_token token_of(unsigned long number) {
    db::lease_token token;
    auto const text = std::to_string(1'000'000 + number);
    token.text.fill('-');
    std::copy(text.begin(), text.end(), token.text.begin());
    return token;
}

class answers final : public db::mailbox {
public:
    void deliver(std::vector<db::lease_answer> some) override {
        all.insert(all.end(), some.begin(), some.end());
    }
    void deliver(std::vector<db::token_answer> /*answers*/) override {}
    void deliver(db::check_answer /*answer*/) override {}
    void database_back() override {}

    std::vector<db::lease_answer> all;
};

// A tick a second; renewals gather for 250 ms; overdue after 5 s.
struct table {
    bool ask(unsigned long number) {
        return pacing.add({static_cast<db::agent_id>(number), token_of(number), &box, number}, now);
    }
    std::vector<unsigned long> answered(renewal_pacing::batch const& sent,
                                        std::vector<std::string> const& missing = {},
                                        std::vector<std::string> const& held = {}) {
        box.all.clear();
        pacing.answered(sent, missing, held, out);
        out.deliver();
        std::vector<unsigned long> keys;
        for (auto const& a : box.all) {
            keys.push_back(a.key);
        }
        return keys;
    }
    renewal_pacing::batch round() {
        pacing.begin_round(now);
        return pacing.take_of_round();
    }

    answers box;
    db::lease_answers out;
    renewal_pacing::time_point now{1h};
    renewal_pacing pacing{{1s, 250ms, 5s}, now};
};

std::string text(unsigned long number) {
    return std::string{token_of(number).view()};
}

std::vector<db::agent_id> agents(renewal_pacing::batch const& some) {
    std::vector<db::agent_id> all;
    for (auto const& e : some) {
        all.push_back(e.agent);
    }
    return all;
}

using listed = std::vector<db::agent_id>;
using keys = std::vector<unsigned long>;

} // namespace

TEST_CASE("a renewal waits for others, no longer than the gathering time, and a tick for nobody") {
    table t;
    CHECK(t.pacing.is_due(t.now)); // the first tick
    CHECK(t.pacing.take_tick(t.now));
    CHECK_FALSE(t.pacing.take_tick(t.now));
    CHECK(t.pacing.take(t.now).empty());
    CHECK(t.pacing.due_at() == t.now + 1s);
    CHECK(t.ask(1)); // worth a look at when the next call is due
    CHECK_FALSE(t.ask(2));
    CHECK(t.pacing.due_at() == t.now + 250ms);
    CHECK_FALSE(t.pacing.is_due(t.now));
    for (unsigned long n = 3; n < renewal_pacing::batch_limit; ++n) {
        t.ask(n);
    }
    CHECK_FALSE(t.pacing.is_due(t.now));
    CHECK(t.ask(renewal_pacing::batch_limit)); // a full batch waits for nothing
    CHECK(t.pacing.is_due(t.now));
}

TEST_CASE("batches go through the leases in the order of their tokens, and nobody starves") {
    table t;
    for (unsigned long n = 3'000; n > 0; --n) {
        t.ask(n);
    }
    auto const first = t.pacing.take(t.now);
    CHECK(first.size() == 2'000);
    CHECK(std::is_sorted(first.begin(), first.end(), [](auto const& a, auto const& b) {
        return a.token.view() < b.token.view();
    }));
    t.answered(first);
    t.ask(1); // before the place where the next batch begins
    CHECK(t.pacing.take(t.now).size() == 1'000);
    CHECK(agents(t.pacing.take(t.now)) == listed{1});
}

TEST_CASE("each renewal is answered once, by what was found") {
    table t;
    t.ask(1);
    t.ask(2);
    t.ask(3);
    auto const batch = t.pacing.take(t.now);
    CHECK(t.answered(batch, {text(2)}, {text(3)}) == keys{1, 2});
    CHECK(t.box.all[0].outcome == lease_outcome::renewed);
    CHECK(t.box.all[1].outcome == lease_outcome::missing);
    CHECK(t.pacing.depth() == 1);
    // The third is held: asked again in the next round, and vouched for until it is answered.
    auto const again = t.round();
    CHECK(agents(again) == listed{3});
    CHECK(t.pacing.vouched(t.now) == std::vector<std::string_view>{text(3)});
    CHECK(t.answered(again) == keys{3});
    CHECK(t.pacing.vouched(t.now).empty());
    CHECK(t.pacing.depth() == 0);
}

TEST_CASE("a renewal whose turn has not come for long is vouched for") {
    table t;
    t.ask(1);
    t.now += 5s;
    CHECK(t.pacing.vouched(t.now).empty());
    t.now += 1ms;
    CHECK(t.pacing.vouched(t.now).size() == 1);
    CHECK(t.pacing.oldest(t.now) == t.now - 5'001ms);
}

TEST_CASE("renewals that failed together are tried in smaller batches, after all others") {
    table t;
    for (unsigned long n = 1; n <= 100; ++n) {
        t.ask(n);
    }
    CHECK(t.pacing.put_off(t.pacing.take(t.now), false, t.now) == 0ms);
    t.ask(200);
    auto const held = t.pacing.take(t.now);
    t.answered(held, {}, {text(200)});
    t.pacing.begin_round(t.now);
    CHECK(agents(t.pacing.take_of_round()) == listed{200});
    std::size_t rest = 0;
    for (auto batch = t.pacing.take_of_round(); !batch.empty(); batch = t.pacing.take_of_round()) {
        CHECK(batch.size() == db::part_size(100));
        rest += batch.size();
    }
    CHECK(rest == 100);
}

TEST_CASE("a renewal that fails alone is left in peace for longer and longer") {
    table t;
    t.ask(1);
    auto batch = t.pacing.take(t.now);
    for (auto const pause : {1'000ms, 2'000ms, 4'000ms, 8'000ms, 16'000ms, 30'000ms, 30'000ms}) {
        CHECK(t.pacing.put_off(batch, false, t.now) == pause);
        CHECK(t.round().empty());
        CHECK(t.pacing.vouched(t.now).size() == 1);
        t.now += pause;
        batch = t.round();
        REQUIRE(batch.size() == 1);
    }
    CHECK(t.pacing.put_off(batch, true, t.now) == 30s); // its call took too long
    CHECK(t.ask(1) == false);                           // asked for anew: it keeps its place
    CHECK(t.pacing.depth() == 1);
}

TEST_CASE("a lease that is over is not renewed, wherever its renewal is") {
    table t;
    t.ask(1);
    t.pacing.forget(token_of(1));
    CHECK(t.pacing.take(t.now).empty());

    t.ask(2);
    auto const flying = t.pacing.take(t.now);
    t.pacing.forget(token_of(2));
    t.pacing.give_back(flying);
    CHECK(t.pacing.depth() == 0);

    t.ask(3);
    t.answered(t.pacing.take(t.now), {}, {text(3)});
    auto const asked = t.round();
    t.pacing.forget(token_of(3));
    CHECK(t.answered(asked).empty());
    CHECK(t.pacing.depth() == 0);
}

TEST_CASE("what is out when something throws is sent again") {
    table t;
    t.ask(1);
    t.ask(2);
    t.answered(t.pacing.take(t.now), {}, {text(2)});
    t.ask(3);
    CHECK(t.pacing.take(t.now).size() == 1);
    CHECK(t.round().size() == 1);
    t.pacing.abort();
    CHECK(agents(t.pacing.take(t.now)) == listed{3});
    CHECK(agents(t.round()) == listed{2});
}

TEST_CASE("what follows a renewal's call that failed") {
    using db::fault;
    using db::renewal_verdict;
    struct row {
        fault kind;
        char const* sqlstate;
        std::size_t renewals;
        bool skip_locked;
        bool tick;
        bool may_tick;
        renewal_verdict says;
    };
    row const rows[] = {
        {fault::passing, "57014", 9, false, true, true, renewal_verdict::put_off},
        {fault::passing, "57014", 0, true, true, true, renewal_verdict::give_back},
        {fault::element, "P0001", 9, false, true, true, renewal_verdict::split},
        {fault::element, "P0001", 1, false, true, true, renewal_verdict::put_off},
        {fault::element, "42883", 9, false, true, true, renewal_verdict::ask_tick},
        {fault::element, "42883", 9, false, false, false, renewal_verdict::split},
        {fault::element, "42883", 0, true, true, true, renewal_verdict::give_back},
        {fault::connection, "", 9, false, true, true, renewal_verdict::give_back},
        {fault::passing, "40P01", 9, false, true, true, renewal_verdict::give_back},
        {fault::passing, "55P03", 9, false, true, true, renewal_verdict::pass_over},
        {fault::passing, "55P03", 9, true, true, true, renewal_verdict::without_tick},
        {fault::passing, "55P03", 9, true, false, true, renewal_verdict::ask_tick_slowly},
        {fault::passing, "55P03", 9, true, false, false, renewal_verdict::rest},
        {fault::passing, "55P03", 0, true, true, true, renewal_verdict::rest},
    };
    for (auto const& r : rows) {
        INFO(r.sqlstate << ", " << r.renewals << " renewals");
        CHECK(db::judge_renewal(db::call_failure{r.kind, r.sqlstate, true, ""}, r.renewals,
                                r.skip_locked, r.tick, r.may_tick) == r.says);
    }
}
