#include "presence/settings.hpp"
#include "tests/support/catch.hpp"

using namespace std::chrono_literals;
using presenced::presence::broken_relations;
using presenced::presence::settings;

namespace {

bool names(settings const& s, std::string const& what) {
    auto const broken = broken_relations(s);
    return broken.size() == 1 && broken.front().find(what) != std::string::npos;
}

} // namespace

TEST_CASE("the default timings keep every promise, and so do a tenth of them") {
    CHECK(broken_relations(settings{}).empty());
    settings tenth;
    tenth.heartbeat /= 10;
    tenth.stale_after /= 10;
    tenth.sweep /= 10;
    tenth.ping /= 10;
    tenth.peer_timeout /= 10;
    CHECK(broken_relations(tenth).empty());
}

TEST_CASE("each relation that is broken is named with its settings") {
    settings s;
    SECTION("two heartbeats must fit into a lease, with an outage too short for an amnesty") {
        s.heartbeat = 16s;
        CHECK(names(s, "2 x PRESENCED_HEARTBEAT"));
        s.heartbeat = 15'900ms; // 44.8 s, and half a second in which it waits for others
        CHECK(names(s, "2 x PRESENCED_HEARTBEAT"));
        s.heartbeat = 15'700ms;
        CHECK(broken_relations(s).empty());
    }
    SECTION("clients give up after 6 s without a ping") {
        s.ping = 5s;
        CHECK(names(s, "PRESENCED_PING"));
    }
    SECTION("a client that answers late must not lose its lease") {
        s.peer_timeout = 32s;
        CHECK(names(s, "PRESENCED_PEER_TIMEOUT"));
    }
    SECTION("the grace must end before the lease does") {
        s.disconnect_grace = 30s;
        CHECK(names(s, "PRESENCED_DISCONNECT_GRACE"));
    }
    SECTION("nothing may be zero") {
        s.unreachable_limit = 0s;
        CHECK(names(s, "PRESENCED_UNREACHABLE_LIMIT"));
    }
}

TEST_CASE("derived timings follow the settings") {
    settings const s;
    CHECK(s.judge_window() == 10s);
    CHECK(s.tick() == 1s);
    CHECK(s.reconnect_limit() == 3s);
    CHECK(s.native_ping() == 10s);
    CHECK(s.longest_step() == 250ms);
    CHECK(s.gathering() == 250ms);
    settings quick;
    quick.peer_timeout = 150ms; // a WebSocket ping every 50 ms
    CHECK(quick.longest_step() == 4ms);
    settings brisk;
    brisk.heartbeat = 5s; // a renewal needs evidence, and an idle client gives it when pinged
    CHECK(brisk.native_ping() == 5s);
}
