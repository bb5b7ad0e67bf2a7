// The command line as people and scripts use it: help, versions, tables and JSON.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <csignal>

using namespace presenced::tests;
using nlohmann::json;

namespace {

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

// What a command printed on stdout as JSON; it has to say nothing else.
json answer(world const& w, std::vector<std::string> arguments) {
    arguments.push_back("--json");
    auto const done = w.presenced(arguments);
    CAPTURE(arguments, done.errors);
    REQUIRE(done.code == 0);
    CHECK(done.errors.empty());
    auto value = json::parse(done.output, nullptr, false);
    REQUIRE_FALSE(value.is_discarded());
    return value;
}

} // namespace

TEST_CASE("every command says what it does, with examples, and needs no database for that") {
    std::vector<std::vector<std::string>> const commands{
        {},         {"serve"},          {"migrate"},       {"agent", "create"}, {"agent", "list"},
        {"status"}, {"token", "issue"}, {"token", "list"}, {"token", "revoke"}, {"connect"},
        {"health"}};
    for (auto const& words : commands) {
        std::vector<std::string> command{binary()};
        command.insert(command.end(), words.begin(), words.end());
        command.push_back("--help");
        auto const done = run(command);
        CAPTURE(command);
        CHECK(done.code == 0);
        CHECK(done.errors.empty());
        CHECK(has(done.output, words.empty() ? "presenced COMMAND --help" : "Examples:"));
    }
    auto const serve = run({binary(), "serve", "--help"}).output;
    for (auto const* part : {"--heartbeat", "[PRESENCED_HEARTBEAT]", "(15s)", "DATABASE_URL"}) {
        CHECK(has(serve, part));
    }
    auto const version = run({binary(), "--version"});
    CHECK(version.code == 0);
    CHECK(version.output.starts_with("presenced "));
    for (auto const& incomplete : {std::vector<std::string>{}, {"agent"}, {"token"}}) {
        std::vector<std::string> command{binary()};
        command.insert(command.end(), incomplete.begin(), incomplete.end());
        auto const done = run(command);
        CHECK(done.code == 2);
        CHECK(done.output.empty());
        CHECK(has(done.errors, "Usage:"));
    }
}

TEST_CASE("agents are made and listed, for people and as JSON") {
    world w;
    CHECK(answer(w, {"agent", "list"}) == json::array());
    CHECK(has(w.presenced({"agent", "list"}).errors, "agent create"));
    auto const made = answer(w, {"agent", "create", "--owner", "3", "--name", "demo"});
    CHECK(made.at("owner_id") == 3);
    CHECK(made.at("name") == "demo");
    CHECK(made.at("routing_active") == false);
    CHECK(answer(w, {"agent", "list"}) == json::array({made}));
    auto const table = w.presenced({"agent", "list"});
    CHECK(table.code == 0);
    CHECK(has(table.output, "ROUTING"));
    CHECK(has(table.output, "demo"));
    for (auto const* owner : {"0", "-1", "x", "9223372036854775808"}) {
        auto const refused = w.presenced({"agent", "create", "--owner", owner});
        CHECK(refused.code == 2);
        CHECK(has(refused.errors, owner));
        CHECK(has(refused.errors, "whole number"));
    }
}

TEST_CASE("tokens are issued, listed without their secrets, and revoked") {
    world w;
    w.sql().query("DELETE FROM access_tokens");
    CHECK(answer(w, {"token", "list"}) == json::array());
    auto issued =
        answer(w, {"token", "issue", "--owner", "3", "--label", "laptop", "--expires-in", "30d"});
    auto const secret = issued.at("token").get<std::string>();
    CHECK(issued.at("state") == "active");
    issued.erase("token");
    CHECK(answer(w, {"token", "list"}) == json::array({issued}));
    auto const listed = w.presenced({"token", "list"}).output;
    CHECK(has(listed, "laptop"));
    CHECK_FALSE(has(listed, secret));

    auto const id = std::to_string(issued.at("id").get<int>());
    CHECK(answer(w, {"token", "revoke", id}).at("state") == "revoked");
    CHECK(answer(w, {"token", "list"}).at(0).at("state") == "revoked");
    auto const unknown = w.presenced({"token", "revoke", "4711"});
    CHECK(unknown.code == 1);
    CHECK(has(unknown.errors, "4711"));
    CHECK(w.presenced({"token", "issue", "--owner", "3", "--expires-in", "soon"}).code == 2);
}

TEST_CASE("a token is issued with a role and narrowed to agents, and the list shows both") {
    world w;
    w.sql().query("DELETE FROM access_tokens");
    auto plain = answer(w, {"token", "issue", "--owner", "3"});
    CHECK(plain.at("role") == "session");
    CHECK(plain.at("agents") == nullptr);
    auto narrow =
        answer(w, {"token", "issue", "--owner", "3", "--role", "peer", "--agents", "9,7,9"});
    CHECK(narrow.at("role") == "peer");
    CHECK(narrow.at("agents") == json::array({7, 9}));
    plain.erase("token");
    narrow.erase("token");
    CHECK(answer(w, {"token", "list"}) == json::array({plain, narrow}));
    CHECK(w.sql().query("SELECT role FROM access_tokens ORDER BY id") ==
          std::vector<std::vector<std::string>>{{"session"}, {"peer"}});
    auto const listed = w.presenced({"token", "list"}).output;
    for (auto const* part : {"ROLE", "AGENTS", "session  all ", "peer     7,9 "}) {
        CAPTURE(listed, part);
        CHECK(has(listed, part));
    }
    auto const told = w.presenced({"token", "issue", "--owner", "3", "--role", "admin"});
    CHECK(told.code == 0);
    CHECK(has(told.errors, "owner 3, role admin, agents all, valid until revoked"));
}

TEST_CASE("a role or a list of agents that cannot be is refused with what is allowed") {
    world w;
    for (auto const* role : {"boss", "", "Admin"}) {
        auto const refused = w.presenced({"token", "issue", "--owner", "3", "--role", role});
        CAPTURE(refused.errors);
        CHECK(refused.code == 2);
        CHECK(has(refused.errors, "--role"));
        CHECK(has(refused.errors,
                  "is '" + std::string{role} + "'; allowed: session, peer, app, admin"));
    }
    for (auto const* agents : {"", "7,", ",7", "7,,8", "7 8", "0", "x", "9223372036854775808"}) {
        auto const refused = w.presenced({"token", "issue", "--owner", "3", "--agents", agents});
        CAPTURE(refused.errors);
        CHECK(refused.code == 2);
        CHECK(has(refused.errors, "--agents"));
        CHECK(has(refused.errors,
                  "is '" + std::string{agents} + "'; allowed: ids of agents with commas between"));
    }
}

TEST_CASE("status names the live agents, their sessions and the nodes, for people and as JSON") {
    world w;
    auto const n = w.start_node({{"PRESENCED_NODE", "lighthouse"}});
    auto const agent = w.add_agent();
    auto const c = w.session(*n);
    auto const one = identifier(agent, "one");
    c->subscribe(one);
    REQUIRE(c->next() == "confirm " + one);
    auto const status = answer(w, {"status"});
    CHECK(status.at("presence_known") == true);
    CHECK(status.at("agents").at(0).at("id") == agent);
    CHECK(status.at("agents").at(0).at("sessions") == 1);
    CHECK(status.at("sessions").at(0).at("session_id") == "one");
    CHECK(status.at("sessions").at(0).at("node") == "lighthouse");
    CHECK(status.at("nodes").at(0).at("node") == "lighthouse");
    auto const text = w.presenced({"status"}).output;
    for (auto const* part : {"Agents", "Sessions", "Nodes", "lighthouse", "one", "on"}) {
        CHECK(has(text, part));
    }
}

TEST_CASE("status tells the sessions of a killed boot from those of the next one of its name") {
    // Its rows stay for 45 s, on a slow machine too.
    world w{timings(1, 1)};
    environment const name{{"PRESENCED_NODE", "lighthouse"}};
    auto const agent = w.add_agent();
    auto before = w.start_node(name);
    auto const lost = w.subscriber(*before, agent);
    before->signal(SIGKILL);
    REQUIRE(before->wait());
    auto const n = w.start_node(name);
    auto const c = w.subscriber(*n, agent);
    REQUIRE(w.rows(agent) == 2);
    auto const status = answer(w, {"status"});
    auto const& nodes = status.at("nodes");
    REQUIRE(nodes.size() == 2);
    CHECK(nodes.at(0).at("since_tick_ms") < nodes.at(1).at("since_tick_ms"));
    for (auto const& boot : nodes) {
        CHECK(boot.at("sessions") == 1);
        CHECK(boot.at("shares_name") == false);
    }
    auto const& sessions = status.at("sessions");
    REQUIRE(sessions.size() == 2);
    CHECK(sessions.at(0).at("boot_id") == nodes.at(1).at("boot_id"));
    CHECK(sessions.at(1).at("boot_id") == nodes.at(0).at("boot_id"));
    CHECK_FALSE(has(w.presenced({"status"}).output, "Warning"));
}

TEST_CASE("status shows a killed boot as gone, and the next one of its name as running") {
    world w;
    environment const name{{"PRESENCED_NODE", "lighthouse"}};
    auto before = w.start_node(name);
    before->signal(SIGKILL);
    REQUIRE(before->wait());
    auto const n = w.start_node(name);
    CHECK(eventually([&] { return answer(w, {"status"}).at("nodes").at(1).at("gone") == true; }));
    CHECK(answer(w, {"status"}).at("nodes").at(0).at("gone") == false);
    CHECK(has(w.presenced({"status"}).output, "  gone  "));
}

TEST_CASE("status shows the newest of many gone boots to people, and all of them as JSON") {
    world w;
    w.sql().query("INSERT INTO nodes (node, boot_id, started_at, ticked_at) "
                  "SELECT 'looping', 'boot-' || g, clock_timestamp() - interval '2 hours' / g, "
                  "clock_timestamp() - interval '1 hour' / g FROM generate_series(1, 9) g");
    auto const text = w.presenced({"status"}).output;
    for (auto const* shown : {"boot-9", "boot-8", "boot-7", "and 6 more that are gone"}) {
        CHECK(has(text, shown));
    }
    CHECK_FALSE(has(text, "boot-6"));
    CHECK(answer(w, {"status"}).at("nodes").size() == 9);
}

TEST_CASE("status warns of two processes with one node name") {
    world w{timings(1, 1)}; // a boot that is slow to tick is not gone
    environment const name{{"PRESENCED_NODE", "lighthouse"}};
    auto const agent = w.add_agent();
    auto const one = w.start_node(name);
    auto const c = w.subscriber(*one, agent);
    CHECK_FALSE(has(w.presenced({"status"}).output, "Warning"));
    auto const two = w.start_node(name);
    // The first has to tick beside the second.
    REQUIRE(eventually(
        [&] { return answer(w, {"status"}).at("nodes").at(0).at("shares_name") == true; }));
    auto const status = answer(w, {"status"});
    for (auto const& boot : status.at("nodes")) {
        CHECK(boot.at("shares_name") == true);
        CHECK(boot.at("sessions").is_null());
    }
    CHECK(status.at("sessions").at(0).at("boot_id").is_null());
    auto const text = w.presenced({"status"}).output;
    CHECK(has(text, "Warning: 2 processes run as node lighthouse"));
    CHECK(has(text, "PRESENCED_NODE"));
    two->signal(SIGTERM);
    REQUIRE(two->wait() == 0);
    CHECK_FALSE(has(w.presenced({"status"}).output, "Warning"));
}

TEST_CASE("health asks whatever it is told to, and says what it heard") {
    world w;
    auto const n = w.start_node();
    auto const base = "http://127.0.0.1:" + std::to_string(n->port());
    auto const fine = w.presenced({"health", "--url", base + "/readyz"});
    CHECK(fine.code == 0);
    CHECK(fine.output == "ok " + base + "/readyz\n");
    auto const missing = w.presenced({"health", "--url", base + "/nothing"});
    CHECK(missing.code == 1);
    CHECK(has(missing.errors, "404"));
    CHECK(w.presenced({"health", "--url", "ftp://here"}).code == 2);
    auto const heard = answer(w, {"health", "--url", base + "/readyz"});
    CHECK(heard.at("healthy") == true);
    CHECK(heard.at("asked").at(0).at("url") == base + "/readyz");
    auto const bad = w.presenced({"health", "--json", "--url", base + "/nothing"});
    CHECK(bad.code == 1);
    CHECK(bad.errors.empty());
    auto const said = json::parse(bad.output);
    CHECK(said.at("healthy") == false);
    CHECK(has(said.at("asked").at(0).at("problem"), "404"));
    auto const migrated = answer(w, {"migrate"});
    CHECK(migrated.at("applied") == json::array());
    CHECK(migrated.at("stale_after_ms") == 4'500);
}

TEST_CASE("presenced health says whether a node is up") {
    world w;
    auto const n = w.start_node();
    environment const where{{"PRESENCED_LISTEN", "127.0.0.1:" + std::to_string(n->port())}};
    CHECK(w.presenced({"health"}, where).code == 0);
    n->signal(SIGTERM);
    REQUIRE(n->wait() == 0);
    CHECK(w.presenced({"health"}, where).code == 1);
}

TEST_CASE("what the command line makes is what a client needs") {
    world w;
    auto const n = w.start_node();
    auto const agent = json::parse(
        w.presenced({"agent", "create", "--owner", "5", "--name", "demo", "--json"}).output);
    auto const issued = w.presenced({"token", "issue", "--owner", "5", "--label", "e2e"});
    REQUIRE(issued.code == 0);
    auto token = issued.output;
    token.erase(token.find_last_not_of('\n') + 1);
    process client{{binary(), "connect", "ws://127.0.0.1:" + std::to_string(n->port()) + "/cable",
                    "--agent", std::to_string(agent.at("id").get<int>())},
                   {{"PRESENCED_TOKEN", token}}};
    CHECK(w.becomes_active(agent.at("id")));
    CHECK(eventually([&] { return has(client.output(), "routing on"); }));
    auto const status = w.presenced({"status"});
    CHECK(status.code == 0);
    CHECK(has(status.output, "demo"));
    client.signal(SIGTERM);
    CHECK(w.becomes_active(agent.at("id"), false, 1s));
    CHECK(client.wait(patience).has_value());
}

TEST_CASE(
    "migrate warns of a stale_after with which no node would start, and serve says whose it is") {
    world w;
    environment const settings{{"PRESENCED_STALE_AFTER", "2s"}};
    auto const migrated = w.presenced({"migrate"}, settings);
    CHECK(migrated.code == 0);
    CHECK(has(migrated.output, "stale_after is 2s"));
    CHECK(has(migrated.errors, "warning"));
    CHECK(has(migrated.errors, "PRESENCED_HEARTBEAT"));
    auto const refused = w.presenced(
        {"serve"}, {{"PRESENCED_LISTEN", "127.0.0.1:0"}, {"PRESENCED_STALE_AFTER", ""}});
    CHECK(refused.code == 2);
    CHECK(has(refused.errors, "PRESENCED_HEARTBEAT"));
    CHECK(has(refused.errors, "database has recorded"));
    CHECK(has(refused.errors, "migrate --stale-after"));
    auto const fitting = w.presenced({"migrate"}, {{"PRESENCED_STALE_AFTER", "4500ms"}});
    CHECK(fitting.code == 0);
    CHECK(fitting.errors.empty());
}
