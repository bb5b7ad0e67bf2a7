// Events and times go in, the steps that are due come out. No clock and no socket: a test says what
// time it is.
#include "server/cable/deadlines.hpp"
#include "tests/support/catch.hpp"

#include <string>
#include <vector>

using namespace presenced;
using namespace presenced::server;
using namespace std::chrono_literals;
using step = deadlines::step;

namespace {

constexpr presence::time_point start = presence::time_point{} + 1h;

// A connection that was opened at `start`, with the default timings: a JSON ping every 3 s, a
// WebSocket ping every 10 s, 30 s of patience.
struct opened {
    presence::settings timings;
    deadlines due{timings};
    lease_times leases;

    explicit opened(presence::duration first_ping = 1s, presence::duration first_native = 2s) {
        due.begin(at(0s));
        due.open(at(0s), first_ping, first_native);
    }
    static moment at(presence::duration after, presence::duration slept = 0s,
                     presence::duration thawed = -1h) {
        return {start + after, slept, start + thawed};
    }
    // All that is due at once; a step that asks or renews is taken to have been done.
    std::vector<step> steps(moment const& now, bool ping_is_unsent = false) {
        std::vector<step> all;
        for (auto s = due.next_step(now, leases, ping_is_unsent); s != step::none;
             s = due.next_step(now, leases, ping_is_unsent)) {
            all.push_back(s);
            if (s == step::ask) {
                leases.any_unsent = false;
            } else if (s == step::renew) {
                leases.next_renewal = lease_times::never;
            } else if (s == step::drop || s == step::end_silent || s == step::end_unserved) {
                break;
            }
        }
        return all;
    }
    std::vector<step> steps(presence::duration after) { return steps(at(after)); }
};

using steps = std::vector<step>;

} // namespace

TEST_CASE("nothing is due before its time, and then each once") {
    opened c;
    c.due.expect_token_end(start + 4500ms);
    c.leases.any_confirmed = true;
    c.leases.next_renewal = start + 5s;
    struct row {
        presence::duration after;
        steps due;
    };
    std::vector<row> const rows{
        {999ms, {}},
        {1s, {step::ping_both}}, // the WebSocket ping is due in a second, and goes along
        {1s, {}},
        {2s, {}},
        {4s, {step::ping}},
        {4499ms, {}},
        {4500ms, {step::check_token}},
        {4500ms, {}},
        {5s, {step::renew}},
        {7s, {step::ping}},
        {10s, {step::ping_both}}, // likewise
        {11s, {}},
        {13s, {step::ping}},
    };
    for (auto const& r : rows) {
        CAPTURE(r.after.count());
        CHECK(c.steps(r.after) == r.due);
    }
}

TEST_CASE("what is due together comes in one order") {
    opened c;
    c.due.expect_token_end(start + 1s);
    c.leases = {true, true, start, start};
    CHECK(c.due.charge_bytes(64 * 1024 * 1024, start));
    c.due.hear(opened::at(33s));
    CHECK(c.steps(40s) ==
          steps{step::resume, step::check_token, step::ask, step::ping_both, step::renew});
}

TEST_CASE("a handshake and a closing one that take too long end in a drop") {
    presence::settings timings;
    SECTION("the handshake has the peer's time") {
        deadlines due{timings};
        due.begin(opened::at(0s));
        CHECK(due.next_step(opened::at(29s), {}, false) == step::none);
        CHECK(due.next_wake_up(opened::at(29s), {}).exact == start + 30s);
        CHECK(due.next_step(opened::at(30s), {}, false) == step::drop);
    }
    SECTION("the closing one has 5 s from the first decision, and nothing else is due in it") {
        opened c;
        c.leases = {false, true, start, start};
        c.due.close(start + 1s);
        c.due.close(start + 4s);
        CHECK(c.steps(5999ms).empty());
        CHECK(c.due.next_wake_up(opened::at(5s), c.leases).exact == start + 6s);
        CHECK(c.steps(6s) == steps{step::drop});
    }
}

TEST_CASE("a subscribe without an answer ends its connection after 8 s, unless it holds a lease") {
    opened c{1h, 1h};
    c.leases.oldest_pending = start + 1s;
    CHECK(c.due.next_wake_up(opened::at(2s), c.leases).exact == start + 9s);
    CHECK(c.steps(8999ms).empty());
    c.leases.any_confirmed = true;
    CHECK(c.steps(9s).empty());
    CHECK(c.due.next_wake_up(opened::at(9s), c.leases).exact == start + 30s);
    c.leases.any_confirmed = false;
    CHECK(c.steps(9s) == steps{step::end_unserved});
}

TEST_CASE("the store is asked 500 times a second by one connection, and a second's worth at once") {
    opened c{1h, 1h};
    auto asked = 0;
    while (c.due.may_ask(start)) {
        c.due.charge_ask(start);
        ++asked;
    }
    CHECK(asked == 501);
    c.leases.any_unsent = true;
    CHECK(c.steps(1ms).empty());
    CHECK(c.due.next_wake_up(opened::at(1ms), c.leases).exact == start + 2ms);
    CHECK(c.steps(2ms) == steps{step::ask});
    SECTION("a store without room is left alone for the pause") {
        c.leases.any_unsent = true;
        c.due.pause_asking(start + 1s, 700ms);
        CHECK(c.steps(1699ms).empty());
        CHECK(c.steps(1700ms) == steps{step::ask});
    }
}

TEST_CASE("who sends more than a tenth of a second's worth at once is read when it is paid for") {
    opened c{1h, 1h};
    for (int i = 0; i < 1000; ++i) {
        REQUIRE_FALSE(c.due.charge_frame(start));
    }
    CHECK(c.due.charge_frame(start));
    CHECK_FALSE(c.due.is_reading());
    CHECK_FALSE(c.due.charge_frame(start)); // it has paused already
    CHECK(c.due.next_wake_up(opened::at(0s), {}).exact == start + 100200us);
    CHECK(c.steps(100ms).empty());
    CHECK(c.steps(101ms) == steps{step::resume});
    CHECK(c.due.is_reading());
}

TEST_CASE("a client that does not read gets no pile of pings") {
    opened c{1s, 1h};
    CHECK(c.steps(opened::at(1s), true).empty());
    CHECK(c.steps(opened::at(4s), true).empty());
    CHECK(c.steps(opened::at(7s), false) == steps{step::ping});
}

TEST_CASE("a renewal is a step at the time at which it is due") {
    opened c{1h, 1h};
    c.leases.any_confirmed = true;
    c.leases.next_renewal = start + 2s;
    CHECK(c.due.next_wake_up(opened::at(1s), c.leases).shared == start + 2s);
    CHECK(c.steps(1s).empty());
    CHECK(c.steps(2s) == steps{step::renew});
}

TEST_CASE("silence ends a connection after peer_timeout, of time in which the node ran") {
    opened c{1h, 1h};
    c.due.hear(opened::at(10s));
    SECTION("on a node that runs") {
        CHECK(c.steps(39999ms).empty());
        CHECK(c.steps(40s) == steps{step::end_silent});
    }
    SECTION("on a node that slept for 100 s meanwhile, when it has had time to read") {
        auto const at = [](presence::duration after) {
            return opened::at(after, 100s, 138s);
        };
        CHECK(c.steps(at(138s)).empty());
        CHECK(c.steps(at(140999ms)).empty());
        CHECK(c.due.next_wake_up(at(138s), {}).exact == start + 141s);
        CHECK(c.steps(at(141s)) == steps{step::end_silent});
    }
    SECTION("on a node that slept long before") {
        CHECK(c.steps(opened::at(119999ms, 80s, 95s)).empty());
        CHECK(c.steps(opened::at(120s, 80s, 95s)) == steps{step::end_silent});
    }
}

TEST_CASE("a node that stops for 2.5 s every 25 s, or all the time, judges a silent client") {
    struct row {
        presence::duration runs;
        presence::duration stops;
    };
    std::vector<row> const rows{{25s, 2500ms}, {1s, 2500ms}, {500ms, 10s}, {3s, 60s}};
    for (auto const& r : rows) {
        CAPTURE(r.runs.count(), r.stops.count());
        opened c{1h, 1h};
        uptime up{start, 2s};
        auto ended_at = presence::time_point::max();
        presence::duration slept{0};
        auto now = start;
        while (ended_at == presence::time_point::max() && now < start + 24h) {
            for (auto const until = now + r.runs; now < until; now += 50ms) {
                if (c.due.next_step(up.at(now), {}, false) == step::end_silent) {
                    ended_at = now;
                    break;
                }
            }
            if (ended_at == presence::time_point::max()) {
                now += r.stops;
                slept += r.stops;
            }
        }
        CHECK(ended_at - start >= 30s + slept - 100ms);
        // A tenth of its patience for what it may have said while the node slept; each stop counts
        // from the last turn before it.
        CHECK(ended_at - start <= 33s + slept + 50ms * (2 + slept / r.stops));
    }
}

TEST_CASE("time in which a process does not run is told from time in which it does little") {
    uptime up{start, 2s};
    CHECK(up.at(start + 2s).slept == 0s);
    auto const thawed = up.at(start + 10s);
    CHECK(thawed.slept == 8s);
    CHECK(thawed.thawed_at == start + 10s);
    auto const later = up.at(start + 11s);
    CHECK(later.slept == 8s);
    CHECK(later.thawed_at == start + 10s);
    CHECK(up.at(start + 9s).now == start + 11s); // time does not go back
}
