// The process: how it starts, why it does not, and how it stops.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <csignal>
#include <sstream>

#include <unistd.h>

using namespace presenced::tests;

namespace {

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

std::size_t count(std::string const& text, std::string const& part) {
    std::size_t found = 0;
    for (auto at = text.find(part); at != text.npos; at = text.find(part, at + part.size())) {
        ++found;
    }
    return found;
}

// Holds an agent's row, so that its releases cannot get through.
sql_session hold(world& w, std::int64_t agent) {
    auto session = w.another_session();
    session.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(agent) + " FOR UPDATE");
    return session;
}

// `presenced serve` with room for so many threads and no more. The kernel counts the threads of a
// user, and root is not bound: so a user of its own, or a user namespace of its own.
std::vector<std::string> serve_with_threads(int most) {
    auto const limit = "--nproc=" + std::to_string(most);
    if (::geteuid() == 0) {
        return {"/usr/bin/setpriv", "--reuid=61234", "--regid=61234", "--clear-groups",
                "/usr/bin/prlimit", limit,           binary(),        "serve"};
    }
    return {"/usr/bin/unshare", "--user", "/usr/bin/prlimit", limit, binary(), "serve"};
}

} // namespace

TEST_CASE("a node that gets too few threads exits 1, names the limit, and leaves no row behind") {
    world w;
    constexpr int more_than_it_has = 40;
    auto started = false;
    for (int most = 1; most < more_than_it_has && !started; ++most) {
        CAPTURE(most);
        auto settings = w.node_settings({{"PRESENCED_LISTEN", "127.0.0.1:0"},
                                         {"PRESENCED_THREADS", "2"},
                                         // Its leak check needs a thread, too.
                                         {"ASAN_OPTIONS", "detect_leaks=0"}});
        process n{serve_with_threads(most), settings};
        auto const serves = [&] {
            return n.errors().find("app serving") != std::string::npos;
        };
        REQUIRE(eventually([&] { return serves() || n.wait(0ms); }));
        started = serves();
        if (started) {
            n.signal(SIGTERM);
            CHECK(n.wait(patience) == 0);
            CHECK(most > 4); // the log, two shards, and the database's
        } else {
            CAPTURE(n.errors());
            CHECK(n.wait(0ms) == 1);
            for (auto const* said : {"cannot start a thread for ", "TasksMax=", "--pids-limit"}) {
                CHECK(has(n.errors(), said));
            }
        }
        CHECK(w.sql().number("SELECT count(*) FROM nodes") == 0);
    }
    CHECK(started);
}

TEST_CASE("SIGHUP ends nothing") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    n->signal(SIGHUP);
    CHECK(n->log_has("app ignores signal=SIGHUP"));
    n->signal(SIGHUP);
    CHECK(n->get("/readyz").status == 200);
    CHECK(c->next(0ms) == "nothing");
    CHECK(w.is_active(agent));
    n->signal(SIGTERM);
    CHECK(c->next() == "disconnect server_restart reconnect:true");
    CHECK(n->wait() == 0);
    CHECK(w.rows() == 0);
}

TEST_CASE("SIGTERM and SIGINT send every client away, release every row and exit 0") {
    auto const signal = GENERATE(SIGTERM, SIGINT);
    world w;
    auto const n = w.start_node();
    auto const agents = w.add_agents(3);
    std::vector<std::unique_ptr<cable>> clients;
    for (int i = 0; i < 12; ++i) {
        clients.push_back(w.subscriber(*n, agents[static_cast<std::size_t>(i) % agents.size()]));
    }
    auto const idle = w.session(*n);
    n->signal(signal);
    CHECK(n->wait() == 0);
    for (auto const& c : clients) {
        CHECK(c->next() == "disconnect server_restart reconnect:true");
        CHECK(c->next() == "closed 1000");
    }
    CHECK(idle->next() == "disconnect server_restart reconnect:true");
    CHECK(w.rows() == 0);
    for (auto const agent : agents) {
        CHECK_FALSE(w.is_active(agent));
        CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    }
    CHECK(w.sql().number("SELECT count(*) FROM nodes") == 0);
}

TEST_CASE("a node without clients stops at once") {
    world w;
    auto const n = w.start_node();
    n->signal(SIGTERM);
    CHECK(n->wait(5s) == 0);
}

TEST_CASE("a node that drains is not ready and takes nobody, and answers until the end") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto holder = hold(w, agent);
    n->signal(SIGTERM);
    CHECK(c->next() == "disconnect server_restart reconnect:true");
    CHECK(n->get("/healthz").status == 200);
    CHECK(n->get("/metrics").status == 200);
    auto const ready = n->get("/readyz");
    CHECK(ready.status == 503);
    CHECK(has(ready.body, "draining"));
    auto const refused = try_upgrade(n->port(), "/cable?token=" + w.token());
    CHECK(refused.status == 503);
    CHECK(refused.header("retry-after") != "");

    SECTION("until the releases get through: exit 0") {
        holder.query("ROLLBACK");
        CHECK(n->wait() == 0);
        CHECK(w.rows() == 0);
    }
    SECTION("or a second signal: exit 1, saying how many rows are left") {
        n->signal(SIGTERM);
        CHECK(n->wait(5s) == 1);
        CHECK(n->log_has("leases=1"));
        CHECK(w.rows() == 1);
    }
}

TEST_CASE("a drain that takes too long ends with exit 1 and the count of rows left") {
    world w;
    auto const n = w.start_node({{"PRESENCED_DRAIN_TIMEOUT", "1s"}});
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const holder = hold(w, agent);
    n->signal(SIGTERM);
    CHECK(n->wait(10s) == 1);
    CHECK(n->log_has("drain deadline connections=0 leases=1"));
    CHECK(n->log_has("app leaves leases=1: they run out by themselves within 5s"));
    CHECK_FALSE(has(n->log(), "leases left")); // once, and one time
}

TEST_CASE("for drain_delay a node is not ready but goes on serving") {
    world w;
    auto const n = w.start_node({{"PRESENCED_DRAIN_DELAY", "3s"}});
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const start = steady::now();
    n->signal(SIGTERM);
    CHECK(eventually([&] { return n->get("/readyz").status == 503; }, 1s));
    auto const late = w.subscriber(*n, agent);
    CHECK(w.rows(agent) == 2);
    CHECK(c->next() == "disconnect server_restart reconnect:true");
    CHECK(since(start) >= 2'900ms);
    CHECK(late->next() == "disconnect server_restart reconnect:true");
    CHECK(n->wait() == 0);
    CHECK(w.rows() == 0);
}

TEST_CASE("without its database a node stays up, says why it is not ready, and recovers") {
    postgres own;
    world w{a_tenth(), own};
    own.stop();
    node n{w.node_settings()};
    CHECK(n.get("/healthz").status == 200);
    auto const not_ready = [&] {
        return n.get("/readyz");
    };
    REQUIRE(eventually([&] { return has(not_ready().body, "database not reachable"); }));
    CHECK(not_ready().status == 503);
    CHECK(n.get("/metrics").status == 200);
    auto const refused = try_upgrade(n.port(), "/cable?token=" + w.token());
    CHECK(refused.status == 503);
    CHECK(refused.header("retry-after") != "");
    CHECK(try_upgrade(n.port(), "/cable", {{"Origin", "http://evil.example"}}).status == 404);
    CHECK(n.log_has("database not reachable"));

    SECTION("reminding whoever reads the log") {
        REQUIRE(eventually([&] { return count(n.log(), "database not reachable") > 1; }, 15s));
    }
    SECTION("when the database appears") {
        own.start();
        n.await_ready();
        CHECK_NOTHROW(w.session(n));
    }
    SECTION("or a signal ends it") {
        n.signal(SIGTERM);
        CHECK(n.wait(5s) == 0);
    }
}

TEST_CASE("a signal ends a node that starts while its database hangs") {
    postgres own;
    world w{a_tenth(), own};
    own.freeze();
    node n{w.node_settings()};
    CHECK(n.get("/healthz").status == 200);
    CHECK(n.get("/readyz").status == 503);
    n.signal(SIGTERM);
    CHECK(n.wait(5s) == 0);
    CHECK(n.log_has("stopped while the database hung"));
    own.thaw();
}

TEST_CASE("a node does not start on a database without its schema, and says so") {
    auto const empty = postgres::shared().create_database(false);
    auto const done =
        run({binary(), "serve"}, {{"DATABASE_URL", empty}, {"PRESENCED_LISTEN", "127.0.0.1:0"}});
    CHECK(done.code == 1);
    CHECK(has(done.errors, "presenced migrate"));
}

TEST_CASE("a port in use, by presenced too, is named, and the exit code is 1") {
    world w;
    auto const n = w.start_node();
    auto const address = "127.0.0.1:" + std::to_string(n->port());
    auto const done = w.presenced({"serve"}, {{"PRESENCED_LISTEN", address}});
    CHECK(done.code == 1);
    CHECK(has(done.errors, address));
    CHECK(has(done.errors, "in use"));
    CHECK(n->get("/readyz").status == 200);
}

TEST_CASE("a bad setting is named with its value and what is allowed, and the exit code is 2") {
    world w;
    struct bad {
        environment settings;
        std::vector<std::string> said;
    };
    std::vector<bad> const all{
        {{{"PRESENCED_HEARTBEAT", "15"}}, {"PRESENCED_HEARTBEAT", "'15'", "15s"}},
        {{{"PRESENCED_LISTEN", "here"}}, {"PRESENCED_LISTEN", "'here'", "127.0.0.1:8080"}},
        {{{"PRESENCED_THREADS", "0"}}, {"PRESENCED_THREADS", "'0'", "1 to 256"}},
        {{{"PRESENCED_PING", "6s"}}, {"PRESENCED_PING", "6s", "5s"}},
        {{{"PRESENCED_HEARTBEAT", "20s"}}, {"PRESENCED_HEARTBEAT", "PRESENCED_STALE_AFTER"}},
        {{{"DATABASE_URL", ""}}, {"DATABASE_URL"}},
        {{{"DATABASE_URL", "postgresql://localhost/x?pool=5"}}, {"DATABASE_URL", "pool"}},
        {{{"PRESENCED_STALE_AFTER", "60s"}}, {"PRESENCED_STALE_AFTER", "'60s'", "4500ms"}},
    };
    for (auto const& one : all) {
        auto const done =
            w.presenced({"serve"}, with({{"PRESENCED_LISTEN", "127.0.0.1:0"}}, one.settings));
        CAPTURE(done.errors);
        CHECK(done.code == 2);
        for (auto const& part : one.said) {
            CHECK(has(done.errors, part));
        }
    }
    CHECK(w.presenced({"serve", "--no-such-flag"}).code == 2);
    CHECK(w.presenced({"dance"}).code == 2);
}

TEST_CASE("json logs are one object a line") {
    world w;
    node json{w.node_settings({{"PRESENCED_LOG_FORMAT", "json"}})};
    // Where it listens stands in the log, in the same words.
    json.await_ready();
    try_upgrade(json.port(), "/cable?token=wrong", {{"Origin", "\"\\\x01"}});
    json.signal(SIGTERM);
    REQUIRE(json.wait() == 0);
    std::istringstream lines{json.log()};
    auto count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
        auto const object = nlohmann::json::parse(line, nullptr, false);
        REQUIRE(object.is_object());
        CHECK(object.contains("time"));
        CHECK(object.contains("level"));
        CHECK(object.contains("message"));
    }
    CHECK(count >= 4);
}
