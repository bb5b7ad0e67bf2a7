#include "presence/lease.hpp"
#include "tests/support/catch.hpp"

#include <random>
#include <vector>

namespace {

using namespace std::chrono_literals;
using namespace presenced::presence;

constexpr auto heartbeat = 15s;

time_point at(duration since_start) {
    return time_point{} + 1h + since_start;
}

lease live_lease() {
    lease l{lease_token{}, at(0s)};
    (void)l.on_acquired(heartbeat); // its action is under test elsewhere
    return l;
}

} // namespace

TEST_CASE("a lease is confirmed when its acquire has committed") {
    lease l{lease_token{}, at(0s)};
    CHECK(l.state() == lease_state::acquiring);
    CHECK(l.on_acquired(heartbeat) == action::confirm);
    CHECK(l.state() == lease_state::live);
}

TEST_CASE("a lease is confirmed once") {
    auto l = live_lease();
    CHECK(l.on_acquired(heartbeat) == action::none);
}

TEST_CASE("a refused lease is rejected and over") {
    lease l{lease_token{}, at(0s)};
    CHECK(l.on_refused() == action::reject);
    CHECK(l.is_over());
}

TEST_CASE("a live lease is renewed every heartbeat while there is evidence") {
    auto l = live_lease();
    CHECK(l.renewal_due() == at(15s));
    CHECK(l.on_due(at(15s), at(14s), heartbeat) == action::renew);
    l.on_renewed();
    CHECK(l.renewal_due() == at(30s));
    CHECK(l.on_due(at(30s), at(16s), heartbeat) == action::renew);
}

TEST_CASE("the first renewal is due a heartbeat after the question, however late the answer") {
    lease l{lease_token{}, at(0s)};
    // Frozen for 40 s: the row is that old already.
    CHECK(l.on_acquired(heartbeat) == action::confirm);
    CHECK(l.renewal_due() == at(15s));
    CHECK(l.on_due(at(40s), at(40s), heartbeat) == action::renew);
}

TEST_CASE("a renewal is not sent before it is due") {
    auto l = live_lease();
    CHECK(l.on_due(at(14s), at(13s), heartbeat) == action::none);
}

TEST_CASE("without evidence since the last one a renewal stays due, and goes out with the first") {
    auto l = live_lease();
    CHECK(l.on_due(at(15s), at(0s), heartbeat) == action::none);
    CHECK(l.renewal_due() == at(15s));
    CHECK(l.on_due(at(29s), at(29s), heartbeat) == action::renew);
    l.on_renewed();
    CHECK(l.renewal_due() == at(44s));
}

TEST_CASE("evidence counts once: what justified one renewal does not justify the next") {
    auto l = live_lease();
    CHECK(l.on_due(at(15s), at(15s), heartbeat) == action::renew);
    l.on_renewed();
    CHECK(l.on_due(at(30s), at(15s), heartbeat) == action::none);
}

TEST_CASE("a renewal is not sent while the last one is unanswered") {
    auto l = live_lease();
    CHECK(l.on_due(at(15s), at(15s), heartbeat) == action::renew);
    CHECK(l.on_due(at(30s), at(29s), heartbeat) == action::none);
    CHECK(l.renewal_due() == time_point::max());
    l.on_renewed();
    CHECK(l.renewal_due() == at(30s));
    CHECK(l.on_due(at(31s), at(29s), heartbeat) == action::renew);
}

TEST_CASE("a renewal that finds no row loses the lease, and nothing brings it back") {
    auto l = live_lease();
    (void)l.on_due(at(15s), at(15s), heartbeat); // in flight now
    CHECK(l.on_missing() == action::tell);
    CHECK(l.state() == lease_state::lost);
    CHECK(l.on_missing() == action::none);
    CHECK(l.on_acquired(heartbeat) == action::none);
    CHECK(l.on_due(at(60s), at(60s), heartbeat) == action::none);
    CHECK(l.on_close(release_reason::disconnected) == action::none);
    CHECK(l.state() == lease_state::lost);
}

TEST_CASE("a live lease is released with the reason of its end") {
    auto l = live_lease();
    CHECK(l.on_close(release_reason::unsubscribed) == action::release);
    CHECK(l.release_cause() == release_reason::unsubscribed);
    CHECK(l.on_close(release_reason::disconnected) == action::none);
    l.on_released();
    CHECK(l.state() == lease_state::ended);
}

TEST_CASE("a renewal that is missing during the release does not count as lost") {
    auto l = live_lease();
    (void)l.on_due(at(15s), at(15s), heartbeat); // in flight now
    CHECK(l.on_close(release_reason::disconnected) == action::release);
    CHECK(l.on_missing() == action::none);
    CHECK(l.state() == lease_state::releasing);
}

TEST_CASE("a lease given up while pending is abandoned, and never confirmed") {
    lease l{lease_token{}, at(0s)};
    CHECK(l.on_close(release_reason::unsubscribed) == action::abandon);

    SECTION("an acquire that got through is released") {
        CHECK(l.on_acquired(heartbeat) == action::release);
        CHECK(l.release_cause() == release_reason::unsubscribed);
        l.on_released();
    }
    SECTION("a refusal has nobody to be told to") {
        CHECK(l.on_refused() == action::none);
    }
    SECTION("one that left no trace is over") {
        CHECK(l.on_abandoned() == action::none);
    }
    CHECK(l.state() == lease_state::ended);
}

TEST_CASE("after an outage every live lease is due soon, and a further outage puts nothing off") {
    auto l = live_lease();
    l.on_database_back(at(3s));
    CHECK(l.renewal_due() == at(3s));
    l.on_database_back(at(4s));
    CHECK(l.renewal_due() == at(3s));
    CHECK(l.on_due(at(3s), at(2s), heartbeat) == action::renew);
}

TEST_CASE("in any order of events a lease keeps its promises") {
    std::mt19937 random{20240229};
    for (int round = 0; round < 20'000; ++round) {
        lease l{lease_token{}, at(0s)};
        auto now = at(0s);
        auto evidence = at(-1s);
        auto renewed_with = at(-2s);
        int confirms = 0;
        int releases = 0;
        int told = 0;
        bool given_up = false;
        bool row_was_removed = false;
        auto const note = [&](action a) {
            switch (a) {
            case action::confirm:
                ++confirms;
                REQUIRE_FALSE(given_up);
                break;
            case action::release:
                ++releases;
                REQUIRE(given_up);
                REQUIRE_FALSE(row_was_removed);
                break;
            case action::renew:
                // P4, and evidence: only for a live lease, each with fresh evidence.
                REQUIRE(l.state() == lease_state::live);
                REQUIRE(evidence > renewed_with);
                renewed_with = now;
                break;
            case action::tell:
                ++told;
                row_was_removed = true;
                break;
            case action::reject:
                REQUIRE(confirms == 0);
                break;
            case action::abandon:
                REQUIRE(confirms == 0);
                break;
            case action::none:
                break;
            }
        };
        for (int step = 0; step < 40; ++step) {
            now += std::chrono::seconds{random() % 10};
            auto const was = l.state();
            switch (random() % 9) {
            case 0:
                note(l.on_acquired(heartbeat));
                break;
            case 1:
                if (was == lease_state::acquiring || was == lease_state::abandoning) {
                    note(l.on_refused());
                }
                break;
            case 2:
                if (was == lease_state::abandoning) {
                    note(l.on_abandoned());
                }
                break;
            case 3:
                note(l.on_due(now, evidence, heartbeat));
                break;
            case 4:
                l.on_renewed();
                break;
            case 5:
                if (l.is_renewing()) {
                    note(l.on_missing());
                }
                break;
            case 6:
                given_up = true;
                note(l.on_close(random() % 2 ? release_reason::unsubscribed
                                             : release_reason::disconnected));
                break;
            case 7:
                l.on_released();
                break;
            default:
                evidence = now;
                if (random() % 4 == 0) {
                    l.on_database_back(now);
                }
            }
            // What is over stays over, and nothing goes back to acquiring.
            if (was == lease_state::lost || was == lease_state::ended) {
                REQUIRE(l.state() == was);
            }
            REQUIRE((l.state() != lease_state::acquiring || was == lease_state::acquiring));
            REQUIRE((!l.is_renewing() || l.renewal_due() == time_point::max()));
        }
        REQUIRE(confirms <= 1);
        REQUIRE(releases <= 1);
        REQUIRE(told <= 1);
        REQUIRE((told == 0 || l.state() == lease_state::lost));
    }
}
