// Clients that send more than is read of them, and clients that read less than they ask for.
#include "tests/support/catch.hpp"
#include "tests/support/raw_http.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

using namespace presenced::tests;

namespace {

// Rejected at once: what this answers stands behind all that was sent before.
std::string const no_channel = R"({"channel":"NoSuchChannel"})";

struct server_frame {
    unsigned opcode = 0;
    std::string payload;
};

// The first frame of what a server has sent, if it is whole (RFC 6455 5.2): unmasked, in one piece,
// and shorter than 64 KiB.
std::optional<server_frame> take_frame(std::string& sent) {
    auto const byte = [&](std::size_t i) {
        return static_cast<std::size_t>(static_cast<unsigned char>(sent[i]));
    };
    if (sent.size() < 2) {
        return std::nullopt;
    }
    REQUIRE((byte(0) & 0xF0U) == 0x80U);
    REQUIRE(byte(1) <= 126);
    std::size_t head = 2;
    auto length = byte(1);
    if (length == 126) {
        head = 4;
        if (sent.size() < head) {
            return std::nullopt;
        }
        length = byte(2) << 8U | byte(3);
    }
    if (sent.size() < head + length) {
        return std::nullopt;
    }
    server_frame found{static_cast<unsigned>(byte(0) & 0xFU), sent.substr(head, length)};
    sent.erase(0, head + length);
    return found;
}

} // namespace

TEST_CASE("a flood is slowed down, never closed, and nobody else waits for it") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    std::string flood;
    SECTION("of commands") {
        for (int i = 0; i < 15'000; ++i) {
            flood += client_frame(1, command("unsubscribe", std::to_string(i)));
        }
    }
    auto hits_at_least = 0.0; // a sanitizer may be slower with small frames than they are let in
    SECTION("of bytes") {
        hits_at_least = 3;
        for (int i = 0; i < 48; ++i) {
            flood += client_frame(2, std::string(64 * 1024, ' '));
        }
    }
    SECTION("of pings") {
        for (int i = 0; i < 15'000; ++i) {
            flood += client_frame(9, "");
        }
    }
    SECTION("of a message that never ends") {
        flood = client_frame(1, "{", false);
        for (int i = 0; i < 450'000; ++i) {
            flood += client_frame(0, "", false);
        }
        flood += client_frame(0, "}");
    }
    flood += client_frame(1, command("subscribe", no_channel));
    // Not before the flood is made: that takes a sanitizer longer than a silent peer has.
    raw_connection flooder{n->port()};
    flooder.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(flooder.answer()->status == 101);
    auto const neighbour = w.session(*n);
    auto const start = steady::now();
    std::thread sending{[&] {
        // Reads what it is sent, like any client.
        for (std::string_view rest = flood; !rest.empty();) {
            rest.remove_prefix(flooder.send_some(rest).value_or(rest.size()));
            flooder.read(1, 0ms);
        }
    }};
    for (int i = 0; i < 20; ++i) {
        auto const asked = steady::now();
        neighbour->subscribe(identifier(agent, std::to_string(i)));
        REQUIRE(neighbour->next() == "confirm " + identifier(agent, std::to_string(i)));
        CHECK(since(asked) < 1s);
    }
    sending.join();
    auto const heard = flooder.read_until("reject_subscription");
    CHECK(heard.find("reject_subscription") != heard.npos);
    auto const took = since(start);
    CHECK(took >= 1s); // 10,000 frames or 2 MiB a second: 1.5 s
    CHECK(n->metric("presenced_limits_hit_total{limit=\"input\"}") >= hits_at_least);
    flooder.send(client_frame(1, command("subscribe", identifier(agent, "flooder"))));
    auto const answer = flooder.read_until("confirm_subscription");
    CHECK(answer.find("confirm_subscription") != answer.npos);
}

TEST_CASE("a flooder that is killed is off within a second, whatever it has left behind") {
    // The next ping would meet a kernel that knows the socket no more, and be answered with a
    // reset: it has to be far away.
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_PING", "4900ms"}});
    auto const agent = w.add_agent();
    // A client across a network: on loopback the kernel would keep megabytes for it.
    std::optional<raw_connection> flooder{std::in_place, n->port(), nullptr,
                                          raw_connection::buffers{64 * 1024, 0}};
    flooder->send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(flooder->answer()->status == 101);
    flooder->send(client_frame(1, command("subscribe", identifier(agent))));
    auto const answer = flooder->read_until("confirm_subscription");
    REQUIRE(answer.find("confirm_subscription") != answer.npos);
    std::string flood;
    for (int i = 0; i < 500; ++i) {
        flood += client_frame(1, command("unsubscribe", std::to_string(i)));
    }
    flooder->read_until(R"("ping")");
    std::string_view rest = flood;
    auto const start = steady::now();
    std::size_t taken = 1;
    while (since(start) < 1s || (taken > 0 && since(start) < 20s)) {
        taken = flooder->send_some(rest).value_or(0);
        rest.remove_prefix(taken);
        rest = rest.empty() ? std::string_view{flood} : rest;
    }
    CHECK(taken == 0); // as much as there is room for stands in front of its end
    CHECK(w.is_active(agent));
    flooder->read(1 << 20, 0ms); // or the kernel would end it with a reset
    flooder.reset();
    CHECK(w.becomes_active(agent, false, 1s));
}

TEST_CASE("who subscribes and unsubscribes without end is slowed down, and answered in the end") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.session(*n);
    for (int i = 0; i < 1'500; ++i) {
        c->subscribe(identifier(agent, std::to_string(i)));
        c->unsubscribe(identifier(agent, std::to_string(i)));
    }
    c->subscribe(identifier(agent, "last"));
    std::string heard;
    do {
        heard = c->next();
    } while (heard.starts_with("confirm ") && heard != "confirm " + identifier(agent, "last"));
    CHECK(heard == "confirm " + identifier(agent, "last"));
    CHECK(n->metric("presenced_limits_hit_total{limit=\"subscribes\"}") > 0);
    CHECK(w.has_rows(agent, 1));
    CHECK(n->metric("presenced_subscriptions{state=\"pending\"}") == 0);
}

TEST_CASE("who does not read its answers is read no further, and closed as too slow") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    raw_connection deaf{n->port(), nullptr, {0, 4096}};
    deaf.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(deaf.answer()->status == 101);
    deaf.send(client_frame(1, command("subscribe", identifier(agent))));
    REQUIRE(w.becomes_active(agent));
    auto const neighbour = w.session(*n);
    auto const flood = client_frame(1, command("subscribe", std::string(4'000, 'x')));
    auto const is_stuck = [&] {
        return n->metric("presenced_limits_hit_total{limit=\"output\"}") > 0;
    };
    std::string_view rest = flood;
    REQUIRE(eventually([&] {
        for (int i = 0; i < 100; ++i) {
            rest.remove_prefix(deaf.send_some(rest).value_or(0));
            rest = rest.empty() ? std::string_view{flood} : rest;
        }
        return is_stuck();
    }));
    // A while is given; then it ends, and what it held.
    CHECK(always([&] { return w.is_active(agent); }, 1s));
    CHECK(w.becomes_active(agent, false, 5s));
    CHECK(n->metric("presenced_outbox_overflows_total") == 1);
    CHECK(eventually(
        [&] { return n->metric("presenced_disconnects_total{reason=\"too_slow\"}") == 1; }));
    CHECK(neighbour->next(0ms) == "nothing");
}

TEST_CASE("who reads slowly gets every answer whole, with its pongs between them") {
    world w;
    auto const n = w.start_node();
    raw_connection slow{n->port(), nullptr, {0, 4096}};
    slow.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(slow.answer()->status == 101);
    auto constexpr count = 400; // 4 MB of answers, more than any buffer holds
    std::string flood;
    for (int i = 0; i < count; ++i) {
        // Of all lengths, so that the kernel's room ends anywhere in a frame.
        auto const length = (i % 8 == 0 ? 50'000 : 4'000) - i;
        auto const id = std::to_string(i) + std::string(static_cast<std::size_t>(length), 'x');
        flood += client_frame(1, command("subscribe", id));
        flood += client_frame(9, std::to_string(i));
    }
    std::string_view rest = flood;
    auto const end = steady::now() + 60s;
    int answers = 0;
    int pongs = 0;
    std::string heard;
    while ((answers < count || pongs < count) && steady::now() < end) {
        rest.remove_prefix(slow.send_some(rest).value_or(rest.size()));
        heard += slow.read(1, 10ms);
        while (auto const f = take_frame(heard)) {
            if (f->opcode == 10) {
                REQUIRE(std::stoi(f->payload) == pongs);
                ++pongs;
            } else if (f->opcode == 1 &&
                       f->payload.find("reject_subscription") != f->payload.npos) {
                auto const id = nlohmann::json::parse(f->payload).at("identifier");
                REQUIRE(std::stoi(id.get<std::string>()) == answers);
                ++answers;
            } else {
                REQUIRE((f->opcode == 9 || (f->opcode == 1 && nlohmann::json::accept(f->payload))));
            }
        }
    }
    CHECK(answers == count);
    CHECK(pongs == count);
    CHECK(heard.empty());
    CHECK(n->metric("presenced_outbox_overflows_total") == 0);
}

TEST_CASE("nothing follows a close frame, whatever was waiting to be sent") {
    world w;
    auto const n = w.start_node();
    raw_connection slow{n->port(), nullptr, {0, 4096}};
    slow.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(slow.answer()->status == 101);
    auto const flood = client_frame(1, command("subscribe", std::string(40'000, 'x')));
    auto const is_stuck = [&] {
        return n->metric("presenced_limits_hit_total{limit=\"output\"}") > 0;
    };
    // Read as soon as the node reads on: a frame that there is no such kind of.
    std::string all;
    for (int i = 0; i < 40; ++i) {
        all += flood;
    }
    std::string_view rest = all;
    REQUIRE(eventually([&] {
        rest.remove_prefix(slow.send_some(rest).value_or(0));
        return is_stuck();
    }));
    std::string bytes{rest};
    bytes += client_frame(3, "");
    std::string heard;
    std::vector<unsigned> kinds;
    rest = bytes;
    auto const take_all = [&] {
        heard += slow.read(1, 10ms);
        while (auto const f = take_frame(heard)) {
            kinds.push_back(f->opcode);
        }
    };
    for (auto const end = steady::now() + 60s;
         steady::now() < end && (kinds.empty() || kinds.back() != 8);) {
        rest.remove_prefix(slow.send_some(rest).value_or(rest.size()));
        take_all();
    }
    CHECK(slow.ended());
    take_all();
    REQUIRE(!kinds.empty());
    CHECK(kinds.back() == 8);
    CHECK(std::count(kinds.begin(), kinds.end(), 8U) == 1);
    CHECK(std::count(kinds.begin(), kinds.end(), 1U) >= 30);
    CHECK(heard.empty());
}

TEST_CASE("who asks for more than it reads is kept for as long as it reads on") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    constexpr auto peer_timeout = 3s; // of a_tenth()
    raw_connection slow{n->port(), nullptr, {0, 4096}};
    slow.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(slow.answer()->status == 101);
    slow.send(client_frame(1, command("subscribe", identifier(agent))));
    REQUIRE(w.becomes_active(agent));
    auto const flood = client_frame(1, command("subscribe", std::string(4'000, 'x')));
    std::string_view rest = flood;
    auto const send_more = [&] {
        for (auto sent = 1UL; sent > 0;) {
            sent = slow.send_some(rest).value_or(0);
            rest.remove_prefix(sent);
            rest = rest.empty() ? std::string_view{flood} : rest;
        }
    };
    auto const stops = [&] {
        return n->metric("presenced_limits_hit_total{limit=\"output\"}");
    };
    REQUIRE(eventually([&] {
        send_more();
        return stops() > 0;
    }));

    // It is stuck nearly all the time, and behind that its pongs are: what it reads speaks for it.
    auto const start = steady::now();
    std::string heard;
    for (auto before = stops(); since(start) < 3 * peer_timeout; before = stops()) {
        std::this_thread::sleep_for(peer_timeout / 3); // the client's pause, under test
        heard += slow.read(64 * 1024);
        CHECK(eventually([&] {
            send_more();
            return stops() > before;
        }));
        REQUIRE(w.is_active(agent));
    }
    CHECK(w.rows(agent) == 1);
    CHECK(heard.find("reject_subscription") != heard.npos);
    CHECK(heard.find("disconnect") == heard.npos);
    CHECK(w.transitions(agent) == "on subscribed");

    // It reads no more.
    CHECK(w.becomes_active(agent, false));
    CHECK(n->metric("presenced_outbox_overflows_total") == 1);
}
