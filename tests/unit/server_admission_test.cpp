#include "server/node/admission.hpp"
#include "tests/support/catch.hpp"

using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

presenced::db::token_digest digest(unsigned char first) {
    presenced::db::token_digest d{};
    d[0] = first;
    return d;
}

admission::clock::time_point const start{1h};

} // namespace

TEST_CASE("an IPv6 address counts as its /64, an IPv4 address as itself") {
    CHECK(admission::key_of("192.0.2.7") == "192.0.2.7");
    CHECK(admission::key_of("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::/64");
    CHECK(admission::key_of("2001:db8:1:2::1") == admission::key_of("2001:db8:1:2:ffff::"));
    CHECK(admission::key_of("2001:db8:1:3::1") != admission::key_of("2001:db8:1:2::1"));
    admission a{100, 2};
    auto const first = a.admit("2001:db8::1");
    {
        auto const second = a.admit("2001:db8::2");
        CHECK(second.ticket);
        CHECK(second.ticket->address() == "2001:db8::2");
        CHECK_FALSE(a.admit("2001:db8::3").ticket);
        CHECK(a.admit("2001:db8:0:1::3").ticket);
    }
    CHECK(a.admit("2001:db8::3").ticket);
}

TEST_CASE("an owner has so many places, given back with the ticket") {
    admission a{100, 0, 1};
    auto first = a.admit("x");
    auto second = a.admit("x");
    CHECK(a.admit_owner(*first.ticket, 7));
    CHECK_FALSE(a.admit_owner(*second.ticket, 7));
    CHECK(a.admit_owner(*second.ticket, 8));
    auto moved = std::move(*first.ticket);
    CHECK(a.connections() == 2);
    first.ticket.reset();
    moved = {};
    CHECK(a.connections() == 1);
    auto third = a.admit("x");
    CHECK(a.admit_owner(*third.ticket, 7));
}

TEST_CASE("a token is barred after three refusals, until the minute is over or it proves good") {
    admission a{100, 0};
    for (auto const seconds : {0s, 10s, 20s}) {
        CHECK_FALSE(a.how_long_barred(digest(1), start + seconds));
        CHECK_FALSE(a.turned_away(digest(1), start + seconds));
    }
    CHECK(a.how_long_barred(digest(1), start + 20s) == 40s);
    CHECK(a.turned_away(digest(1), start + 30s) == 30s);
    CHECK_FALSE(a.how_long_barred(digest(2), start + 20s));
    CHECK(a.how_long_barred(digest(1), start + 59s) == 1s);
    CHECK_FALSE(a.how_long_barred(digest(1), start + 60s));
    // A new minute, in which it proves good at the third try.
    CHECK_FALSE(a.turned_away(digest(1), start + 61s));
    CHECK_FALSE(a.turned_away(digest(1), start + 62s));
    a.forgive(digest(1));
    CHECK_FALSE(a.turned_away(digest(1), start + 63s));
    CHECK_FALSE(a.how_long_barred(digest(1), start + 63s));
}
