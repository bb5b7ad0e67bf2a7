#include "server/cable/subscription_set.hpp"
#include "tests/support/catch.hpp"

#include <memory>
#include <string>
#include <vector>

using namespace presenced;
using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

constexpr presence::time_point start = presence::time_point{} + 1h;
constexpr auto heartbeat = 15s;

metrics figures{"test", "test"};

// Holds subscriptions as a connection does.
class holder final : public lease_holder {
public:
    explicit holder(std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            all.push_back(std::make_unique<subscription>(
                counts, presence::lease_token{}, start + i * 1us,
                static_cast<presence::agent_id>(i), *this, "subscription " + std::to_string(i)));
            set.add(*all.back());
        }
    }
    void on_moved(subscription& s) noexcept override { set.file(s); }
    void on_confirmed(subscription&) override {}
    void on_rejected(subscription&) override {}
    void on_lease_lost(subscription&) override {}
    void on_owner_changed(subscription&) override {}
    void on_no_room(subscription&) override {}
    void on_renewed() override {}
    void fail(std::string_view, std::exception const&) override {}

    void is_asked(subscription& s) {
        s.unsent = false;
        set.file(s);
    }
    void is_confirmed(subscription& s) {
        is_asked(s);
        (void)s.lease.on_acquired(heartbeat); // its action is the table's
        set.file(s);
    }

    lease_counts counts{figures};
    std::vector<std::unique_ptr<subscription>> all;
    subscription_set set;
};

} // namespace

TEST_CASE("nothing that is done for one subscription looks at all the others") {
    constexpr std::size_t count = 20'000;
    constexpr std::uint64_t few = 400; // a few descents of a tree that is 15 to 30 deep
    holder h{count};
    std::uint64_t most = 0;
    auto const each = [&](auto&& work) {
        for (auto& s : h.all) {
            auto const before = subscription_set::visits();
            work(*s);
            (void)h.set.times(); // as for every new deadline
            most = std::max(most, subscription_set::visits() - before);
        }
    };
    each([&](subscription& s) { CHECK(h.set.find(s.identifier) == &s); });
    each([&](subscription&) { h.is_asked(*h.set.first_unsent()); });
    each([&](subscription& s) { h.is_confirmed(s); });
    auto now = start + heartbeat + 1s;
    auto const evidence = now - 1ms;
    each([&](subscription&) {
        auto* const s = h.set.first_due(now);
        REQUIRE(s != nullptr);
        CHECK(s->lease.on_due(now, evidence, heartbeat) == presence::action::renew);
        h.set.file(*s);
    });
    CHECK(h.set.first_due(now) == nullptr);
    each([&](subscription& s) {
        s.lease.on_renewed();
        h.set.file(s);
    });
    // Without evidence each waits, once, and not again at every ping.
    now += heartbeat;
    each([&](subscription&) { h.set.put_off(*h.set.first_due(now)); });
    CHECK(h.set.first_due(now) == nullptr);
    CHECK(h.set.times().next_renewal == lease_times::never);
    h.set.take_up();
    CHECK(h.set.first_due(now) != nullptr);
    each([&](subscription& s) { h.set.remove(s); });
    CHECK(most < few);
    CHECK(h.set.empty());
}

TEST_CASE("a set of subscriptions knows what its leases wait for") {
    holder h{3};
    auto& a = *h.all[0];
    auto& b = *h.all[1];
    auto& c = *h.all[2];
    auto times = h.set.times();
    CHECK(times.any_unsent);
    CHECK_FALSE(times.any_confirmed);
    CHECK(times.oldest_pending == start);
    CHECK(times.next_renewal == lease_times::never);

    h.is_confirmed(a);
    CHECK(h.set.first_unsent() == &b);
    h.is_asked(b);
    CHECK(h.set.first_unsent() == &c);
    times = h.set.times();
    CHECK(times.any_confirmed);
    CHECK(times.oldest_pending == start + 1us);
    CHECK(times.next_renewal == start + heartbeat);

    // The store had no room for it: it comes before those that were never asked for.
    b.unsent = true;
    h.set.file(b);
    CHECK(h.set.first_unsent() == &b);

    h.set.remove(b);
    h.set.remove(c);
    times = h.set.times();
    CHECK_FALSE(times.any_unsent);
    CHECK(times.oldest_pending == lease_times::never);
    h.set.remove(a);
}

TEST_CASE("a set of subscriptions finds each by its identifier, few or many") {
    auto const count = GENERATE(std::size_t{1}, std::size_t{16}, std::size_t{17}, std::size_t{100});
    holder h{count};
    for (auto& s : h.all) {
        CHECK(h.set.find(s->identifier) == s.get());
    }
    CHECK(h.set.find("another") == nullptr);
    auto& gone = *h.all[count / 2];
    h.set.remove(gone);
    CHECK(h.set.find(gone.identifier) == nullptr);
    CHECK(h.set.size() == count - 1);
    h.set.add(gone);
    CHECK(h.set.find(gone.identifier) == &gone);
}

TEST_CASE("a lease is counted once, in the state that it is in, until it is gone") {
    auto const shown = [](char const* state, int count) {
        auto const line = std::string{"presenced_subscriptions{state=\""} + state + "\"} " +
                          std::to_string(count);
        return figures.exposition({}, true).find(line + "\n") != std::string::npos;
    };
    lease_counts counts{figures};
    {
        counted_lease one{counts};
        CHECK(counts.held == 1);
        CHECK(shown("pending", 1));
        one.moves_to(presence::lease_state::live);
        one.moves_to(presence::lease_state::live);
        CHECK(shown("pending", 0));
        CHECK(shown("confirmed", 1));
        one.moves_to(presence::lease_state::releasing);
        CHECK(shown("releasing", 1));
    }
    CHECK(counts.held == 0);
    CHECK(shown("releasing", 0));
}
