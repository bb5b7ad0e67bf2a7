// Rows and flags as everybody else sees them in PostgreSQL, with one node and with two.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <csignal>
#include <set>
#include <sstream>

using namespace presenced::tests;

namespace {

// The timings of a_tenth().
constexpr auto heartbeat = 1'500ms;
constexpr auto stale_after = 4'500ms;
constexpr auto sweep = 500ms;
constexpr auto slack = 1'000ms;

// What the lines of Prometheus' text that begin with `what` say of each metric.
std::vector<std::pair<std::string, std::string>> commented(std::string const& text,
                                                           std::string_view what) {
    std::vector<std::pair<std::string, std::string>> found;
    std::istringstream lines{text};
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with(what)) {
            auto const rest = line.substr(what.size());
            auto const space = rest.find(' ');
            REQUIRE(space != rest.npos);
            found.emplace_back(rest.substr(0, space), rest.substr(space + 1));
        }
    }
    return found;
}

std::string of_agent(std::int64_t agent) {
    return " WHERE agent_id = " + std::to_string(agent);
}

} // namespace

TEST_CASE("the flag goes on with the first session and off with the last") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const other = w.add_agent();
    CHECK_FALSE(w.is_active(agent));
    auto first = w.subscriber(*n, agent);
    CHECK(w.is_active(agent));
    auto second = w.subscriber(*n, agent);
    CHECK(w.rows(agent) == 2);
    first->close();
    CHECK(w.has_rows(agent, 1, 1s));
    CHECK(w.is_active(agent));
    second->close();
    CHECK(w.becomes_active(agent, false, 1s));
    CHECK(w.rows(agent) == 0);
    CHECK_FALSE(w.is_active(other));
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    CHECK(w.transitions(other).empty());
}

TEST_CASE("two processes may share a session_id, each with a row of its own") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const one = w.session(*n);
    auto const two = w.session(*n);
    for (auto const& c : {one.get(), two.get()}) {
        c->subscribe(identifier(agent, "shared"));
        CHECK(c->next() == "confirm " + identifier(agent, "shared"));
    }
    CHECK(w.rows(agent) == 2);
    one->close();
    CHECK(w.has_rows(agent, 1));
    CHECK(w.is_active(agent));
}

TEST_CASE("a flip is notified with agent, direction, reason, time and schema; a renewal is not") {
    world w;
    auto listener = w.another_session();
    listener.query("LISTEN presenced_routing");
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    std::vector<std::string> payloads;
    auto const listen = [&] {
        for (auto& payload : listener.notifications()) {
            payloads.push_back(std::move(payload));
        }
        return payloads.size();
    };
    auto const c = w.subscriber(*n, agent);
    auto const seen = "SELECT max(last_seen_at) FROM agent_subscriptions";
    auto const first_seen = w.sql().value(seen);
    CHECK(eventually([&] { return w.sql().value(seen) != first_seen; }, heartbeat + slack));
    c->unsubscribe(identifier(agent));
    REQUIRE(eventually([&] { return listen() == 2; }));
    auto const expect = [&](std::size_t i, bool active, std::string const& reason) {
        auto const json = nlohmann::json::parse(payloads.at(i));
        CHECK(json.size() == 5);
        CHECK(json.at("schema") == w.sql().value("SELECT current_schema()"));
        CHECK(json.at("agent_id") == agent);
        CHECK(json.at("active") == active);
        CHECK(json.at("reason") == reason);
        CHECK(w.sql().value("SELECT count(*) FROM routing_transitions WHERE at = '" +
                            json.at("at").get<std::string>() + "'") == "1");
    };
    expect(0, true, "subscribed");
    expect(1, false, "unsubscribed");
}

TEST_CASE("nodes on one database keep one flag between them") {
    world w;
    auto const one = w.start_node({{"PRESENCED_NODE", "one"}});
    auto const two = w.start_node({{"PRESENCED_NODE", "two"}});
    auto const agent = w.add_agent();
    auto const here = w.subscriber(*one, agent);
    auto const there = w.subscriber(*two, agent);
    CHECK(w.sql().value("SELECT string_agg(node, ',' ORDER BY node) FROM agent_subscriptions") ==
          "one,two");
    here->close();
    CHECK(w.has_rows(agent, 1, 1s));
    CHECK(w.is_active(agent));
    there->close();
    CHECK(w.becomes_active(agent, false, 1s));
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
}

TEST_CASE("an idle session that answers keeps its row for longer than stale_after") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    CHECK(always([&] { return w.is_active(agent) && w.rows(agent) == 1; }, 2 * stale_after));
    CHECK(w.sql().number("SELECT count(*) FROM live_agent_subscriptions") == 1);
    CHECK(w.sql().value("SELECT presence_known()") == "t");
    CHECK(n->metric("presenced_renewals_total{result=\"renewed\"}") >= 4);
    CHECK(w.transitions(agent) == "on subscribed");
    CHECK(c->next(0ms) == "nothing");
}

TEST_CASE("a session whose row somebody removes is told lease_lost, and the flag follows") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const other = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const bystander = w.subscriber(*n, other);
    w.sql().query("DELETE FROM agent_subscriptions" + of_agent(agent));
    CHECK(w.becomes_active(agent, false, sweep + slack));
    CHECK(c->next(heartbeat + 1s) == "disconnect lease_lost reconnect:true");
    CHECK(c->next() == "closed 1000");
    CHECK(w.rows(agent) == 0);
    CHECK(w.transitions(agent) == "on subscribed, off reconciled");
    CHECK(n->metric("presenced_leases_lost_total") == 1);
    CHECK(n->metric("presenced_disconnects_total{reason=\"lease_lost\"}") == 1);
    CHECK(w.rows(other) == 1);
    CHECK(bystander->next(0ms) == "nothing");
    // What was lost takes the rest of its connection with it, and comes back whole.
    auto const again = w.subscriber(*n, agent);
    CHECK(w.is_active(agent));
}

TEST_CASE("a row that somebody inserts turns the flag on, and runs out if nobody renews it") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    w.sql().query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (" +
                  std::to_string(agent) + ", 'by hand')");
    CHECK(w.becomes_active(agent, true, sweep + slack));
    auto const start = steady::now();
    CHECK(w.becomes_active(agent, false, stale_after + sweep + slack));
    CHECK(since(start) > stale_after - sweep - slack);
    CHECK(w.rows(agent) == 0);
    CHECK(w.transitions(agent) == "on reconciled, off expired");
    CHECK(n->metric("presenced_sweep_repairs_total{cause=\"expired\"}") >= 1);
}

TEST_CASE("a flag that somebody sets wrong is put right within a sweep") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const idle = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    w.sql().query("UPDATE agents SET routing_active = NOT routing_active");
    CHECK(w.becomes_active(agent, true, sweep + slack));
    CHECK(w.becomes_active(idle, false, sweep + slack));
    CHECK(w.transitions(agent) == "on subscribed, on reconciled");
    CHECK(w.transitions(idle) == "off reconciled");
}

TEST_CASE("an agent that is deleted under a session ends it, and is rejected from then on") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    w.sql().query("DELETE FROM agents");
    CHECK(c->next(heartbeat + 1s) == "disconnect lease_lost reconnect:true");
    CHECK(c->next() == "closed 1000");
    auto const again = w.session(*n);
    again->subscribe(identifier(agent));
    CHECK(again->next() == "reject " + identifier(agent));
    CHECK(w.rows() == 0);
}

TEST_CASE("a session ends when its token expires, and may not come back with it") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    w.sql().query("UPDATE access_tokens SET expires_at = clock_timestamp() + interval '3 seconds'");
    auto const c = w.subscriber(*n, agent);
    CHECK(c->next() == "disconnect token_expired reconnect:false");
    CHECK(c->next() == "closed 1000");
    CHECK(w.sql().value("SELECT expires_at <= clock_timestamp() FROM access_tokens") == "t");
    CHECK(w.becomes_active(agent, false, 1s));
}

TEST_CASE("P8: a token that was extended while its session lived ends when the database says so") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    w.sql().query("UPDATE access_tokens SET expires_at = clock_timestamp() + interval '2 seconds'");
    auto const c = w.subscriber(*n, agent);
    w.sql().query("UPDATE access_tokens SET expires_at = expires_at + interval '1 day'");
    // The end that it had makes the node ask, long before it asks after every token.
    CHECK(eventually([&] {
        return n->metric("presenced_database_seconds_count{statement=\"check_tokens\"}") == 1;
    }));
    CHECK(c->next(0ms) == "nothing");
    CHECK(w.is_active(agent));
    w.sql().query("UPDATE access_tokens SET expires_at = clock_timestamp()");
    CHECK(c->next(31s) == "disconnect token_expired reconnect:false");
}

TEST_CASE("a token that is narrowed to agents gets these, and no other agent of its owner") {
    world w;
    auto const n = w.start_node();
    auto const mine = w.add_agent();
    auto const other = w.add_agent();
    auto const foreign = w.add_agent(2);
    auto options = w.client_options(*n);
    options.token = w.add_token();
    w.sql().query("UPDATE access_tokens SET role = 'peer', agents = '{" + std::to_string(foreign) +
                  "," + std::to_string(mine) + "}' WHERE id = (SELECT max(id) FROM access_tokens)");
    auto const c = w.session(options);
    c->subscribe(identifier(mine));
    CHECK(c->next() == "confirm " + identifier(mine));
    c->subscribe(identifier(other));
    CHECK(c->next() == "reject " + identifier(other));
    // The list gives nothing that the owner does not have.
    c->subscribe(identifier(foreign));
    CHECK(c->next() == "reject " + identifier(foreign));
    CHECK(n->metric("presenced_rejections_total{cause=\"refused\"}") == 2);
    CHECK(w.rows(mine) == 1);
    CHECK(w.rows() == 1);
    CHECK(w.transitions(other).empty());
    CHECK_FALSE(w.is_active(other));
}

TEST_CASE("whatever its role, a token may use the cable") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    for (std::string const role : {"session", "peer", "app", "admin"}) {
        CAPTURE(role);
        w.sql().query("UPDATE access_tokens SET role = '" + role + "'");
        CHECK_NOTHROW(w.subscriber(*n, agent));
    }
    // Of its owner's agents, that is: of an admin, too.
    auto const foreign = w.add_agent(2);
    auto const c = w.session(*n);
    c->subscribe(identifier(foreign));
    CHECK(c->next() == "reject " + identifier(foreign));
}

TEST_CASE("a session ends when its token is given another role, other agents or another owner") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const id = std::to_string(agent);
    std::vector<std::unique_ptr<cable>> ending;
    for (auto const& change :
         {std::string{"role = 'peer'"}, "agents = '{" + id + "}'", std::string{"owner_id = 2"}}) {
        auto options = w.client_options(*n);
        options.token = w.add_token();
        ending.push_back(w.session(options));
        ending.back()->subscribe(identifier(agent));
        REQUIRE(ending.back()->next() == "confirm " + identifier(agent));
        w.sql().query("UPDATE access_tokens SET " + change +
                      " WHERE id = (SELECT max(id) FROM access_tokens)");
    }
    // One that is written again as it was is not another.
    auto options = w.client_options(*n);
    options.token = w.add_token();
    w.sql().query("UPDATE access_tokens SET agents = '{" + id +
                  ",999}' "
                  "WHERE id = (SELECT max(id) FROM access_tokens)");
    auto const staying = w.session(options);
    staying->subscribe(identifier(agent));
    REQUIRE(staying->next() == "confirm " + identifier(agent));
    w.sql().query("UPDATE access_tokens SET agents = '{999," + id +
                  ",999}' "
                  "WHERE id = (SELECT max(id) FROM access_tokens)");
    for (auto const& c : ending) {
        CHECK(c->next(31s) == "disconnect token_expired reconnect:false");
        CHECK(c->next() == "closed 1000");
    }
    CHECK(w.has_rows(agent, 1));
    CHECK(staying->next(0ms) == "nothing");
}

TEST_CASE("an agent that is given to another owner ends the sessions of the former one") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const kept = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const bystander = w.subscriber(*n, kept);
    w.sql().query("UPDATE agents SET owner_id = 2 WHERE id = " + std::to_string(agent));
    auto options = w.client_options(*n);
    options.token = w.add_token(2);
    auto const theirs = w.session(options);
    theirs->subscribe(identifier(agent));
    CHECK(theirs->next() == "confirm " + identifier(agent));
    CHECK(c->next(31s) == "disconnect lease_lost reconnect:true");
    CHECK(c->next() == "closed 1000");
    CHECK(w.has_rows(agent, 1)); // the new owner's
    CHECK(w.is_active(agent));
    CHECK(n->metric("presenced_leases_lost_total") == 1);
    CHECK(theirs->next(0ms) == "nothing");
    CHECK(bystander->next(0ms) == "nothing");
    CHECK(w.rows(kept) == 1);
    auto const again = w.session(*n);
    again->subscribe(identifier(agent));
    CHECK(again->next() == "reject " + identifier(agent));
}

TEST_CASE("with a grace a connection that was lost keeps its row that long, once") {
    world w;
    auto const n = w.start_node({{"PRESENCED_DISCONNECT_GRACE", "1500ms"}});
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    SECTION("whoever comes back in time keeps the flag on") {
        c->kill();
        auto const again = w.subscriber(*n, agent);
        CHECK(w.rows(agent) == 2);
        CHECK(w.has_rows(agent, 1, 1'500ms + slack));
        CHECK(w.is_active(agent));
        CHECK(w.transitions(agent) == "on subscribed");
    }
    SECTION("nobody comes back") {
        auto const killed = steady::now();
        c->kill();
        CHECK(w.becomes_active(agent, false, 1'500ms + slack));
        CHECK(since(killed) >= 1'300ms);
        CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    }
    SECTION("a clean close has none") {
        c->close();
        CHECK(w.becomes_active(agent, false, 1s));
    }
    SECTION("an unsubscribe has none") {
        c->unsubscribe(identifier(agent));
        CHECK(w.becomes_active(agent, false, 1s));
    }
    SECTION("silence has none: it was waited for already") {
        c->stop_reading();
        REQUIRE(eventually([&] { return n->log_has("cable peer silent"); }));
        CHECK(w.becomes_active(agent, false, 1s));
    }
    SECTION("two processes that share a session_id never evict each other") {
        auto const shared = identifier(agent, "shared");
        auto const one = w.session(*n);
        auto const two = w.session(*n);
        for (auto* const each : {one.get(), two.get()}) {
            each->subscribe(shared);
            REQUIRE(each->next() == "confirm " + shared);
        }
        c->close();
        REQUIRE(w.has_rows(agent, 2));
        one->kill();
        auto const again = w.session(*n);
        again->subscribe(shared);
        CHECK(again->next() == "confirm " + shared);
        CHECK(w.rows(agent) == 3);
        CHECK(w.has_rows(agent, 2, 1'500ms + slack));
        CHECK(always([&] { return w.rows(agent) == 2; }, heartbeat + sweep));
        CHECK(two->next(0ms) == "nothing");
        CHECK(again->next(0ms) == "nothing");
        CHECK(w.transitions(agent) == "on subscribed");
    }
}

TEST_CASE("/metrics has every family") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    c->send_text("{");
    c->unsubscribe(identifier(agent));
    CHECK(w.has_rows(agent, 0));
    w.sql().query("UPDATE agents SET routing_active = true");
    CHECK(w.becomes_active(agent, false, sweep + slack));
    try_upgrade(n->port(), "/cable?token=wrong");
    c->close();
    CHECK(eventually([&] { return n->metric("presenced_connections") == 0; }));

    std::set<std::string> families;
    auto const text = n->get("/metrics").body;
    for (auto const& [family, help] : commented(text, "# HELP ")) {
        CHECK_FALSE(help.empty());
        families.insert(family);
    }
    for (auto const* family : {"presenced_connections",
                               "presenced_subscriptions",
                               "presenced_subscribe_seconds",
                               "presenced_disconnects_total",
                               "presenced_auth_failures_total",
                               "presenced_bad_frames_total",
                               "presenced_renewals_total",
                               "presenced_oldest_renewal_seconds",
                               "presenced_leases_lost_total",
                               "presenced_flips_total",
                               "presenced_sweep_repairs_total",
                               "presenced_last_sweep_age_seconds",
                               "presenced_ready",
                               "presenced_database_up",
                               "presenced_database_seconds",
                               "presenced_database_warnings_total",
                               "presenced_queue_depth",
                               "presenced_batch_size",
                               "presenced_outbox_overflows_total",
                               "presenced_build_info",
                               "process_start_time_seconds",
                               "process_cpu_seconds_total",
                               "process_resident_memory_bytes",
                               "process_max_fds"}) {
        CAPTURE(family);
        CHECK(families.count(family) == 1);
    }
    auto const m = n->metrics();
    CHECK(m.at("presenced_database_up") == 1);
    CHECK(m.at("presenced_ready") == 1);
    CHECK(m.at("presenced_flips_total{direction=\"on\",reason=\"subscribed\"}") == 1);
    CHECK(m.at("presenced_flips_total{direction=\"off\",reason=\"unsubscribed\"}") == 1);
    CHECK(m.at("presenced_sweep_repairs_total{cause=\"reconciled\"}") == 1);
    CHECK(m.at("presenced_subscribe_seconds_count") == 1);
    CHECK(m.at("presenced_disconnects_total{reason=\"client_closed\"}") == 1);
    CHECK(m.at("presenced_last_sweep_age_seconds") >= 0);
    CHECK(m.at("presenced_last_sweep_age_seconds") < 5);
    for (auto const* lane : {"transition", "busy", "renewal", "lookup"}) {
        CAPTURE(lane);
        CHECK(text.find(std::string{"presenced_queue_depth{lane=\""} + lane) != text.npos);
    }
    // Nothing that there are many of is a label.
    CHECK(text.find("agent=") == text.npos);
    CHECK(text.find("token=") == text.npos);
}

TEST_CASE("whatever goes wrong is counted by its cause") {
    world w;
    auto const n = w.start_node(
        {{"PRESENCED_MAX_CONNECTIONS", "3"}, {"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "2"}});
    auto const counts = [&](std::string const& sample, double figure = 1) {
        CAPTURE(sample, figure);
        CHECK(eventually([&] { return n->metric(sample) == figure; }));
    };
    counts("presenced_connections_limit", 3);
    auto const agent = w.add_agent();
    {
        auto const killed = w.subscriber(*n, agent);
        auto const none = identifier(agent + 1);
        killed->subscribe(none);
        CHECK(killed->next() == "reject " + none);
    }
    counts("presenced_rejections_total{cause=\"refused\"}");
    counts("presenced_disconnects_total{reason=\"lost\"}");

    auto const target = "/cable?token=" + w.token();
    {
        raw_connection odd{n->port()};
        odd.send(upgrade_request(n->port(), target));
        REQUIRE(odd.answer()->status == 101);
        odd.send("\x81\x01x"); // a client's frame without a mask
        CHECK(odd.ended());
    }
    counts("presenced_disconnects_total{reason=\"protocol_error\"}");

    std::vector<std::unique_ptr<cable>> here;
    here.push_back(w.subscriber(*n, agent));
    here.push_back(w.session(*n));
    CHECK(try_upgrade(n->port(), target).status == 503);
    counts("presenced_limits_hit_total{limit=\"address\"}");
    auto elsewhere = w.client_options(*n);
    elsewhere.bind_address = "127.0.0.2";
    here.push_back(w.session(elsewhere));
    CHECK(try_upgrade(n->port(), target, {}, "127.0.0.3").status == 503);
    counts("presenced_limits_hit_total{limit=\"connections\"}");

    CHECK(n->get("/nothing").status == 404);
    counts("presenced_http_responses_total{status=\"404\"}");

    // A backend that is killed while it waits for the agent's row.
    auto holder = w.another_session();
    holder.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(agent) + " FOR UPDATE");
    here.front()->unsubscribe(identifier(agent));
    CHECK(eventually([&] {
        return w.sql().number("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                              "WHERE datname = current_database() AND wait_event_type = 'Lock' "
                              "AND application_name = 'presenced'") >= 1;
    }));
    holder.query("ROLLBACK");
    CHECK(eventually([&] {
        auto failures = 0.0;
        for (auto const& [sample, figure] : n->metrics()) {
            failures += sample.starts_with("presenced_database_failures_total{") ? figure : 0;
        }
        return failures >= 1;
    }));
    CHECK(w.has_rows(agent, 0));

    // What Prometheus calls a counter is one, and is called so.
    auto const types = commented(n->get("/metrics").body, "# TYPE ");
    CHECK_FALSE(types.empty());
    for (auto const& [name, type] : types) {
        CAPTURE(name);
        CHECK(name.ends_with("_total") == (type == "counter"));
    }
}

TEST_CASE("renewals that wait for the database show their age") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto holder = w.another_session();
    holder.query("BEGIN; LOCK TABLE agent_subscriptions IN ACCESS EXCLUSIVE MODE");
    CHECK(eventually([&] { return n->metric("presenced_oldest_renewal_seconds") >= 0.5; }));
    holder.query("ROLLBACK");
    CHECK(eventually([&] { return n->metric("presenced_oldest_renewal_seconds") < 0.5; }));
    CHECK(w.rows(agent) == 1);
}

TEST_CASE("logs and metrics never contain a token") {
    world w;
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "debug"}});
    auto const agent = w.add_agent();
    std::vector<std::string> secrets{w.token(), "wrong-but-secret"};
    auto options = w.client_options(*n);
    auto const c = w.subscriber(*n, agent);
    options.token_in = presenced::clients::cable_client_options::token_place::bearer;
    auto const bearer = w.session(options);
    for (auto const& row : w.sql().query("SELECT token FROM agent_subscriptions")) {
        secrets.push_back(row.front());
    }
    for (int i = 0; i < 5; ++i) {
        try_upgrade(n->port(), "/cable?token=wrong-but-secret");
        try_upgrade(n->port(), "/cable", {{"Authorization", "Bearer wrong-but-secret"}});
    }
    try_upgrade(n->port(), "/cable?token=wrong-but-secret", {{"Origin", "http://evil.example"}});
    n->get("/cable?token=wrong-but-secret");
    n->get("/other?token=wrong-but-secret");
    // Joined or escaped wrongly, it is a part of the path.
    try_upgrade(n->port(), "/cable&token=wrong-but-secret");
    try_upgrade(n->port(), "/cable%3Ftoken=wrong-but-secret");
    // Whatever is refused, the answer says nothing of the token either.
    auto const port = n->port();
    headers const bearer_header{{"Authorization", "Bearer wrong-but-secret"}};
    auto const answered = [&](http_answer const& a) {
        CHECK(a.status >= 400);
        CHECK(a.body.find("secret") == a.body.npos);
        for (auto const& [name, value] : a.headers) {
            CHECK(value.find("secret") == value.npos);
        }
    };
    answered(http_request(port, "/cable?token=wrong-but-secret", bearer_header, "POST"));
    answered(try_upgrade(port, "/cable?token=wrong-but-secret",
                         {{"Origin", "http://evil.example"}, bearer_header.front()}));
    answered(try_upgrade(port, "/cable?token=wrong-but-secret"));
    answered(
        try_upgrade(port, "/cable?token=wrong-but-secret", {{"X-Long", std::string(20'000, 'x')}}));
    raw_connection odd{port};
    odd.send("GET /cable?token=wrong-but-secret HTTP/9.9 wrong-but-secret\r\n\r\n");
    answered(odd.answer().value());
    c->send_text("{" + w.token());
    c->send_text(R"({"command":"message","identifier":"x","data":")" + w.token() + "\"}");
    c->unsubscribe(identifier(agent));
    CHECK(w.has_rows(agent, 0));
    auto const lost = w.subscriber(*n, agent);
    w.sql().query("DELETE FROM agent_subscriptions");
    CHECK(lost->next() == "disconnect lease_lost reconnect:true");
    n->signal(SIGTERM);
    REQUIRE(n->wait() == 0);
    auto const log = n->log();
    CHECK(log.find("lease lost") != log.npos);
    for (auto const& secret : secrets) {
        CHECK(log.find(secret) == log.npos);
    }
}

TEST_CASE("a client gets its pings and renewals however often database sessions are lost") {
    world w;
    auto const n = w.start_node();
    auto const c = w.subscriber(*n, w.add_agent());
    constexpr auto ping = 300ms;
    constexpr auto heartbeat = 1500ms;
    constexpr auto rounds = 40;
    auto const renewals = [&] {
        return n->metric("presenced_renewals_total{result=\"renewed\"}");
    };
    auto const renewed = renewals();
    auto const start = steady::now();
    for (int i = 0; i < rounds; ++i) {
        w.sql().query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                      "WHERE application_name = 'presenced' AND datname = current_database()");
        std::this_thread::sleep_for(ping / 2); // time is under test
    }
    auto const due = since(start) / ping;
    CHECK(c->pings().size() > static_cast<std::size_t>(due / 2));
    // Each session that comes after a lost one renews; so no lease waits longer than without
    // losses.
    CHECK(renewals() - renewed > static_cast<double>(since(start) / heartbeat));
    CHECK(n->metric("presenced_leases_lost_total") == 0);
}
