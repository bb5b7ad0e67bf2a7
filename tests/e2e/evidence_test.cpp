// A lease is renewed only on evidence: whoever says nothing is gone after peer_timeout, in
// whichever way it came to be silent, and whoever says something now and then stays (P2, P3).
// PRESENCED_E2E_FULL=1: at the default timings.
#include "tests/support/catch.hpp"
#include "tests/support/scaled_times.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <csignal>
#include <iostream>
#include <optional>
#include <thread>

using namespace presenced::tests;
using towards = tcp_proxy::towards;

namespace {

// A client by hand: takes what it is sent, and says only what it is told to say.
class quiet_client {
public:
    quiet_client(world const& w, node const& to, std::int64_t agent)
        : connection_{to.port()} {
        connection_.send(upgrade_request(to.port(), "/cable?token=" + w.token()));
        if (auto const answer = connection_.answer(); !answer || answer->status != 101) {
            throw std::runtime_error{"not upgraded"};
        }
        auto const command =
            nlohmann::json{{"command", "subscribe"}, {"identifier", identifier(agent)}};
        connection_.send(client_frame(1, command.dump()));
        if (!hears("confirm_subscription")) {
            throw std::runtime_error{"not subscribed"};
        }
    }

    void pong() { connection_.send(client_frame(10, "")); }
    bool hears(std::string const& text, milliseconds limit = patience) {
        auto const deadline = steady::now() + limit;
        while (heard_.find(text) == heard_.npos && steady::now() < deadline) {
            heard_ += connection_.read(1, 50ms);
        }
        return heard_.find(text) != heard_.npos;
    }

private:
    raw_connection connection_;
    std::string heard_;
};

std::string last_seen(world& w, std::int64_t agent) {
    return w.sql().value("SELECT last_seen_at FROM agent_subscriptions WHERE agent_id = " +
                         std::to_string(agent));
}

// The flag goes off in time, and not before a silence of that length is over.
void goes_off_for_silence(world& w, std::int64_t agent, steady::time_point since_when,
                          char const* what) {
    CHECK(w.becomes_active(agent, false, peer_timeout + 1s + slack));
    auto const took = since(since_when);
    // The last thing that was heard may be an answer to a ping, up to a third of it ago.
    CHECK(took >= peer_timeout * 2 / 3 - 100ms);
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    std::cout << what << ": off after " << took.count() << " ms" << std::endl;
}

} // namespace

TEST_CASE("a client that reads but never answers a ping is not renewed, and goes") {
    world w{scaled_timings()};
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    quiet_client mute{w, *n, agent};
    auto const start = steady::now();
    auto const first_seen = last_seen(w, agent);
    // Two renewals would be due in this time.
    CHECK(always([&] { return last_seen(w, agent) == first_seen; }, peer_timeout * 2 / 3));
    goes_off_for_silence(w, agent, start, "reads, never answers");
    CHECK(mute.hears(R"("reason":"no_pong","reconnect":true)"));
    // Counted at the end of the connection, for which a client that is mute keeps it waiting.
    CHECK(eventually(
        [&] { return n->metric("presenced_disconnects_total{reason=\"no_pong\"}") == 1; }));
}

TEST_CASE("a client that answers only just in time is never lost, however long") {
    world w{scaled_timings()};
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    quiet_client slow{w, *n, agent};
    // 29 of 30 seconds. At a tenth a busy machine needs more room than 100 ms to be late in.
    auto const pause = is_full_size() ? milliseconds{29s} : milliseconds{2'500ms};
    constexpr int answers = 3;
    auto renewals = 0;
    for (int i = 0; i < answers; ++i) {
        auto const before = last_seen(w, agent);
        std::this_thread::sleep_for(pause); // the client's, under test
        CHECK(w.is_active(agent));
        CHECK(w.rows(agent) == 1);
        slow.pong();
        renewals += eventually([&] { return last_seen(w, agent) != before; }, 1s) ? 1 : 0;
    }
    CHECK(renewals == answers); // each answer renews the lease, at once
    CHECK(w.transitions(agent) == "on subscribed");
    CHECK_FALSE(slow.hears("disconnect", 0ms));
}

TEST_CASE("a client process that is frozen goes, is told why, and comes back when it thaws") {
    world w{scaled_timings()};
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    process client{{binary(), "connect", "ws://127.0.0.1:" + std::to_string(n->port()) + "/cable",
                    "--agent", std::to_string(agent)},
                   {{"PRESENCED_TOKEN", w.token()}}};
    REQUIRE(w.becomes_active(agent));
    auto const start = steady::now();
    client.signal(SIGSTOP);
    goes_off_for_silence(w, agent, start, "client process frozen");
    client.signal(SIGCONT);
    CHECK(w.becomes_active(agent));
    // At the default timings the client is the first to speak: it gives up after 15 s of silence.
    CHECK((is_full_size() ||
           client.output().find("disconnect  reason=no_pong reconnect=true") != std::string::npos));
    CHECK(w.transitions(agent) == "on subscribed, off disconnected, on subscribed");
}

TEST_CASE("a path that swallows everything and keeps both sockets open is noticed") {
    auto const way = GENERATE(towards::client, towards::server, towards::both);
    if (way == towards::client && !is_full_size()) {
        return; // looks like both ways to the node: it hears nothing
    }
    world w{scaled_timings()};
    auto const n = w.start_node();
    tcp_proxy path{n->port()};
    auto const agent = w.add_agent();
    auto const bystander = w.add_agent();
    auto options = w.client_options(*n);
    auto const other = w.subscriber(*n, bystander);
    options.port = path.port();
    auto const c = w.session(options);
    c->subscribe(identifier(agent));
    REQUIRE(c->next() == "confirm " + identifier(agent));
    auto const start = steady::now();
    path.black_hole(way);
    goes_off_for_silence(w, agent, start,
                         way == towards::server   ? "black hole towards the server"
                         : way == towards::client ? "black hole towards the client"
                                                  : "black hole both ways");
    if (way == towards::server) {
        CHECK(c->next() == "disconnect no_pong reconnect:true");
    } else {
        CHECK(c->next(0ms) == "nothing");
        CHECK(path.connections() == 1);
    }
    // What was on its way all the time brings nobody back (P4).
    path.heal();
    CHECK(always([&] { return !w.is_active(agent) && w.rows(agent) == 0; }, slack));
    CHECK(w.is_active(bystander));
    CHECK(other->next(0ms) == "nothing");
}

TEST_CASE("a long path with answers a second and more late is no silence") {
    world w{scaled_timings()};
    auto const n = w.start_node();
    tcp_proxy path{n->port()};
    path.delay(peer_timeout / 4);
    auto const agent = w.add_agent();
    auto options = w.client_options(*n);
    options.port = path.port();
    options.timeout = peer_timeout;
    auto const c = w.session(options);
    c->subscribe(identifier(agent));
    REQUIRE(c->next(peer_timeout) == "confirm " + identifier(agent));
    CHECK(always([&] { return w.is_active(agent); }, stale_after + sweep));
    CHECK(c->next(0ms) == "nothing");
    CHECK(w.transitions(agent) == "on subscribed");
}

// As long a grace as there may be: 29 s of a lease of 45 s.
TEST_CASE("a grace begins with a renewal if there is evidence, and never outlives its lease") {
    auto const grace = scaled(29s);
    world w{scaled_timings()};
    auto const n =
        w.start_node({{"PRESENCED_DISCONNECT_GRACE", std::to_string(grace.count()) + "ms"}});
    auto const agent = w.add_agent();
    std::optional<quiet_client> client{std::in_place, w, *n, agent};
    auto const first_seen = last_seen(w, agent);
    auto const subscribed = steady::now();
    REQUIRE(eventually([&] { return since(subscribed) > heartbeat + 100ms; }, 2 * heartbeat));
    client->pong(); // renews at once what has been due
    REQUIRE(eventually([&] { return last_seen(w, agent) != first_seen; }, 500ms));
    auto const renewed = steady::now();
    SECTION("a client that was heard of since its last renewal has all of it") {
        auto const seen = last_seen(w, agent);
        REQUIRE(eventually([&] { return since(renewed) > heartbeat * 2 / 3; }, heartbeat));
        client->pong(); // evidence for a renewal that is not due yet
        client.reset();
        auto const lost = steady::now();
        CHECK(eventually([&] { return last_seen(w, agent) != seen; }, 500ms));
        CHECK(w.becomes_active(agent, false, grace + slack));
        CHECK(since(lost) >= grace - 200ms);
        CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    }
    SECTION("one that was silent before has what is left of its lease") {
        REQUIRE(eventually([&] { return since(renewed) > peer_timeout * 5 / 6; }, peer_timeout));
        REQUIRE(w.is_active(agent));
        client.reset();
        CHECK(w.becomes_active(agent, false, stale_after + sweep + slack - since(renewed)));
        CHECK(since(renewed) >= stale_after - 100ms);
        CHECK(w.transitions(agent) == "on subscribed, off expired");
    }
}
