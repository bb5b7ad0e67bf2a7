// The wire after the upgrade: what a client sends and what it gets for it.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <ctime>
#include <optional>
#include <thread>

using namespace presenced::tests;

namespace {

// Commands are handled in order, so that what this answers stands behind all answers to what was
// sent before, as far as they did not need the database.
std::string const barrier = R"({"channel":"NoSuchChannel"})";

double subscriptions(node const& n, std::string const& state) {
    return n.metric("presenced_subscriptions{state=\"" + state + "\"}");
}

// Holds an agent's row until it is destroyed, so that nobody can subscribe to it meanwhile.
class held_agent {
public:
    held_agent(world& w, std::int64_t agent)
        : session_{w.another_session()} {
        session_.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(agent) +
                       " FOR UPDATE");
    }
    void let_go() { session_.query("ROLLBACK"); }

private:
    sql_session session_;
};

} // namespace

TEST_CASE("a client is welcomed at once and pinged with whole unix seconds, each at its own time") {
    world w;
    auto const n = w.start_node();
    std::vector<std::unique_ptr<cable>> clients;
    for (int i = 0; i < 12; ++i) {
        clients.push_back(w.session(*n));
        CHECK(clients.back()->frames().front() == R"({"type":"welcome"})");
    }
    auto const start = steady::now();
    std::vector<milliseconds> phases;
    for (auto const& c : clients) {
        REQUIRE(eventually([&] { return c->pings().size() >= 4; }));
        auto const pings = c->pings();
        for (auto const& ping : pings) {
            auto const json = nlohmann::json::parse(ping.text);
            CHECK(json.size() == 2);
            REQUIRE(json.at("message").is_number_integer());
            CHECK(std::abs(json.at("message").get<std::int64_t>() - std::time(nullptr)) <= 5);
        }
        auto const span = std::chrono::duration_cast<milliseconds>(pings[3].at - pings[0].at);
        CHECK(span >= 600ms); // three intervals of 300 ms, and some jitter
        CHECK(span <= 2'000ms);
        phases.push_back(std::chrono::duration_cast<milliseconds>(pings[3].at - start) % 300);
    }
    auto const [least, most] = std::minmax_element(phases.begin(), phases.end());
    CHECK(*most - *least > 50ms);
}

TEST_CASE("a WebSocket ping comes in one packet with the JSON ping behind it") {
    world w;
    auto const n = w.start_node();
    raw_connection c{n->port()};
    c.send(upgrade_request(n->port(), "/cable?token=" + w.token()));
    REQUIRE(c.answer()->status == 101);
    using namespace std::string_literals;
    auto const ping = "\x89\x00"s;
    auto const text = "\x81"s;
    // The first may be due before any JSON ping is. Of the others an acknowledgement that comes
    // between the two makes the kernel send one by itself, once in a blue moon.
    std::size_t pings = 0;
    std::size_t together = 0;
    while (pings < 6) {
        auto const packet = c.read(1);
        REQUIRE(!packet.empty());
        if (auto const at = packet.find(ping); at != packet.npos) {
            ++pings;
            together += packet.compare(at, 3, ping + text) == 0 ? 1U : 0U;
            c.send(client_frame(10, ""));
        }
    }
    CHECK(together >= 4);
}

TEST_CASE("a confirmation comes after the row is committed") {
    world w;
    auto const n = w.start_node();
    auto const agents = w.add_agents(30);
    auto const c = w.session(*n);
    for (auto const agent : agents) {
        c->subscribe(identifier(agent, "s"));
        REQUIRE(c->next() == "confirm " + identifier(agent, "s"));
        CHECK(w.rows(agent) == 1);
        CHECK(w.is_active(agent));
    }
    auto const row = w.sql().query("SELECT session_id, node, token ~ '^[A-Za-z0-9_-]{22}$' FROM "
                                   "agent_subscriptions WHERE agent_id = " +
                                   std::to_string(agents.front()));
    CHECK(row.front().at(0) == "s");
    CHECK(row.front().at(1) != "");
    CHECK(row.front().at(2) == "t");
}

TEST_CASE("an identifier that is sent again makes no second row and no second confirmation") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.session(*n);
    held_agent held{w, agent};
    for (int i = 0; i < 4; ++i) {
        c->subscribe(identifier(agent));
    }
    REQUIRE(eventually([&] { return subscriptions(*n, "pending") == 1; }));
    held.let_go();
    CHECK(c->next() == "confirm " + identifier(agent));
    for (int i = 0; i < 4; ++i) {
        c->subscribe(identifier(agent));
    }
    c->subscribe(identifier(agent, "other"));
    CHECK(c->next() == "confirm " + identifier(agent, "other"));
    CHECK(w.rows(agent) == 2);
}

TEST_CASE("a subscribe that cannot be is rejected, and its connection goes on") {
    world w;
    auto const n = w.start_node();
    auto const c = w.session(*n);
    auto const foreign = w.add_agent(2);
    auto const mine = w.add_agent();
    auto const id = std::to_string(mine);
    std::vector<std::string> const bad{
        identifier(foreign),
        identifier(foreign + 1'000'000),
        R"({"channel":"AgentChannel"})",
        R"({"channel":"AgentChannel","agent_id":null})",
        R"({"channel":"AgentChannel","agent_id":0})",
        R"({"channel":"AgentChannel","agent_id":-)" + id + "}",
        R"({"channel":"AgentChannel","agent_id":)" + id + ".5}",
        R"({"channel":"AgentChannel","agent_id":9223372036854775808})",
        R"({"channel":"AgentChannel","agent_id":"9223372036854775808"})",
        R"({"channel":"AgentChannel","agent_id":"x"})",
        R"({"channel":"AgentChannel","agent_id":")" + id + R"( or 1=1"})",
        R"({"channel":"AgentChannel","agent_id":[)" + id + "]}",
        R"({"channel":"Other","agent_id":)" + id + "}",
        R"({"agent_id":)" + id + "}",
        R"({"channel":"AgentChannel","agent_id":)" + id + R"(,"session_id":7})",
        R"({"channel":"AgentChannel","agent_id":)" + id + R"(,"session_id":")" +
            std::string(256, 's') + R"("})",
        R"({"channel":"AgentChannel","agent_id":)" + id + R"(,"session_id":"a\u0000b"})",
        "not JSON",
        "[1]",
        "",
    };
    for (auto const& one : bad) {
        c->subscribe(one);
        CHECK(c->next() == "reject " + one);
    }
    CHECK(w.rows() == 0);
    c->subscribe(identifier(mine));
    CHECK(c->next() == "confirm " + identifier(mine));
}

TEST_CASE("agent_id may be a string, the channel Collavre::AgentChannel, other keys are ignored") {
    world w;
    auto const n = w.start_node();
    auto const c = w.session(*n);
    auto const agent = std::to_string(w.add_agent());
    std::vector<std::string> const good{
        R"({"channel":"AgentChannel","agent_id":")" + agent + R"("})",
        R"({"channel":"Collavre::AgentChannel","agent_id":)" + agent + R"(,"session_id":"u-u"})",
        R"({"version":2,"agent_id":)" + agent + R"(,"more":{"x":[1]},"channel":"AgentChannel"})",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"session_id":null})",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"session_id":")" +
            std::string(255, 's') + R"("})",
    };
    for (auto const& one : good) {
        c->subscribe(one);
        CHECK(c->next() == "confirm " + one);
    }
    CHECK(w.rows() == static_cast<long>(good.size()));
}

TEST_CASE("the subscription over the limit of one connection is rejected") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.session(*n);
    for (int i = 0; i < 100; ++i) {
        c->subscribe(identifier(agent, std::to_string(i)));
    }
    for (int i = 0; i < 100; ++i) {
        REQUIRE(c->next() == "confirm " + identifier(agent, std::to_string(i)));
    }
    c->subscribe(identifier(agent, "one too many"));
    CHECK(c->next() == "reject " + identifier(agent, "one too many"));
    c->unsubscribe(identifier(agent, "0"));
    c->subscribe(identifier(agent, "now"));
    CHECK(c->next() == "confirm " + identifier(agent, "now"));
    auto const another = w.session(*n);
    another->subscribe(identifier(agent, "one too many"));
    CHECK(another->next() == "confirm " + identifier(agent, "one too many"));
}

TEST_CASE("identifiers come back byte for byte, and those that differ in a byte are two") {
    world w;
    auto const n = w.start_node();
    auto const agent = std::to_string(w.add_agent());
    auto const c = w.session(*n);
    std::vector<std::string> const odd{
        R"({"channel":"AgentChannel","agent_id":)" + agent + "}",
        R"({ "channel" : "AgentChannel" ,)"
        "\t\n\r"
        R"("agent_id" : )" +
            agent + " } ",
        R"({"agent_id":)" + agent + R"(,"channel":"AgentChannel"})",
        R"({"channel":"\u0041gentChannel","agent_id":)" + agent + "}",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"session_id":"ünï→😀"})",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"session_id":"\ud83d\ude00"})",
        R"({"channel":"AgentChannel","agent_id":1,"agent_id":)" + agent + "}",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"x":"\/\\\"</script>"})",
        R"({"channel":"AgentChannel","agent_id":)" + agent + R"(,"x":1.0e+2})",
    };
    for (auto const& one : odd) {
        c->subscribe(one);
        CHECK(c->next() == "confirm " + one);
    }
    CHECK(w.rows() == static_cast<long>(odd.size()));
    // The same characters, escaped another way in the frame, are the same identifier.
    c->send_text(R"({"identifier":"{\u0022channel\u0022:\"AgentChannel\",\"agent_id\":)" + agent +
                 R"(}","command":"subscribe"})");
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    CHECK(w.rows() == static_cast<long>(odd.size()));
}

TEST_CASE("unsubscribe removes the row and is not acknowledged") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    c->unsubscribe(identifier(agent));
    CHECK(w.has_rows(agent, 0, 1s));
    CHECK(w.becomes_active(agent, false, 1s));
    c->unsubscribe(identifier(agent));
    c->unsubscribe(identifier(agent, "never heard of"));
    c->unsubscribe("not JSON");
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    CHECK(w.transitions(agent) == "on subscribed, off unsubscribed");
}

TEST_CASE("a subscribe that is unsubscribed while pending is never confirmed") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.session(*n);
    held_agent held{w, agent};
    c->subscribe(identifier(agent, "gone"));
    REQUIRE(eventually([&] { return subscriptions(*n, "pending") == 1; }));
    c->unsubscribe(identifier(agent, "gone"));
    REQUIRE(eventually([&] { return subscriptions(*n, "pending") == 0; }));
    held.let_go();
    c->subscribe(identifier(agent, "stays"));
    CHECK(c->next() == "confirm " + identifier(agent, "stays"));
    CHECK(eventually([&] { return subscriptions(*n, "releasing") == 0; }));
    CHECK(w.rows(agent) == 1);
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
}

TEST_CASE("subscribe, unsubscribe, subscribe ends in one new row and one confirmation") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.session(*n);

    SECTION("while the first is pending") {
        held_agent held{w, agent};
        c->subscribe(identifier(agent));
        REQUIRE(eventually([&] { return subscriptions(*n, "pending") == 1; }));
        c->unsubscribe(identifier(agent));
        c->subscribe(identifier(agent));
        c->subscribe(barrier);
        CHECK(c->next() == "reject " + barrier);
        held.let_go();
        CHECK(c->next() == "confirm " + identifier(agent));
    }
    SECTION("when the first was confirmed") {
        c->subscribe(identifier(agent));
        CHECK(c->next() == "confirm " + identifier(agent));
        auto const first = w.sql().value("SELECT token FROM agent_subscriptions");
        c->unsubscribe(identifier(agent));
        c->subscribe(identifier(agent));
        CHECK(c->next() == "confirm " + identifier(agent));
        CHECK(w.has_rows(agent, 1));
        CHECK(w.sql().value("SELECT token FROM agent_subscriptions") != first);
    }
    SECTION("a hundred times") {
        for (int i = 0; i < 100; ++i) {
            c->subscribe(identifier(agent));
            c->unsubscribe(identifier(agent));
        }
        c->subscribe(identifier(agent));
        c->subscribe(identifier(agent, "last"));
        // Some of the hundred may have been confirmed before their unsubscribe was read.
        std::string heard;
        while ((heard = c->next()) == "confirm " + identifier(agent)) {
        }
        CHECK(heard == "confirm " + identifier(agent, "last"));
    }
    auto const mine = "SELECT count(*) FROM agent_subscriptions WHERE session_id IS NULL";
    CHECK(eventually([&] { return subscriptions(*n, "releasing") == 0; }));
    CHECK(w.sql().number(mine) == 1);
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    CHECK(w.is_active(agent));
}

TEST_CASE("an action on the channel is answered with nothing") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const act = [](std::string const& on, std::string const& data) {
        return nlohmann::json{{"command", "message"}, {"identifier", on}, {"data", data}}.dump();
    };
    c->send_text(act(identifier(agent), R"({"action":"speak"})"));
    c->send_text(act(identifier(agent), "not JSON"));
    c->send_text(act(identifier(agent, "unknown"), R"({"action":"speak"})"));
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    CHECK(w.rows(agent) == 1);
}

TEST_CASE("bad frames are counted and answered with nothing, and the subscriptions go on") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const bad = [&](std::string const& cause) {
        return n->metric("presenced_bad_frames_total{cause=\"" + cause + "\"}");
    };
    c->send_text("{");
    c->send_text("");
    c->send_text("[]");
    c->send_text(R"("subscribe")");
    c->send_text(R"({"command":"dance","identifier":"x"})");
    c->send_text(R"({"identifier":"x"})");
    c->send_text(R"({"command":"subscribe"})");
    c->send_text(R"({"command":"subscribe","identifier":7})");
    c->send_text(std::string(30'000, '['));
    c->send_binary(command("subscribe", identifier(agent, "binary")));
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    CHECK(bad("not_json") >= 2);
    CHECK(bad("not_an_object") == 2);
    CHECK(bad("unknown_command") == 2);
    CHECK(bad("missing_identifier") == 2);
    CHECK(bad("binary") == 1);
    CHECK(n->log_has("bad frame"));
    CHECK(w.rows(agent) == 1);
    c->subscribe(identifier(agent, "after"));
    CHECK(c->next() == "confirm " + identifier(agent, "after"));
}

TEST_CASE("a message of 64 KiB is taken, a longer one closes with 1009 and releases at once") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto frame = command("message", identifier(agent));
    frame += std::string(64 * 1024 - frame.size(), ' ');
    c->send_text(frame);
    c->subscribe(barrier);
    CHECK(c->next() == "reject " + barrier);
    c->send_text(frame + ' ');
    CHECK(c->next() == "closed 1009");
    CHECK(w.has_rows(agent, 0, 1s));
    CHECK(w.becomes_active(agent, false, 1s));
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
}

TEST_CASE("text that is no UTF-8 closes with 1007 and releases at once") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    c->send_text("\xff\xfe");
    CHECK(c->next() == "closed 1007");
    CHECK(w.has_rows(agent, 0, 1s));
}

TEST_CASE("a client that closes, or is killed, is off within a second") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    SECTION("close") {
        c->close();
        CHECK(w.becomes_active(agent, false, 1s));
        CHECK(c->next() == "closed 1000");
    }
    SECTION("kill") {
        c->kill();
        CHECK(w.becomes_active(agent, false, 1s));
    }
    SECTION("destroyed without a word") {
        auto lonely = w.subscriber(*n, agent);
        c->close();
        lonely.reset();
        CHECK(w.becomes_active(agent, false, 1s));
    }
    CHECK(w.rows(agent) == 0);
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
}
