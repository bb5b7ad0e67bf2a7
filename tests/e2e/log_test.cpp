// The log, when nobody reads it: nobody waits, what is lost is counted, and the order is kept.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <csignal>
#include <cstdlib>
#include <sstream>

#include <fcntl.h>
#include <unistd.h>

using namespace presenced::tests;

namespace {

// A node whose stderr is the smallest of pipes, read when the test likes.
class unread_node {
public:
    explicit unread_node(environment settings) {
        int ends[2];
        REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
        reading_ = ends[0];
        fcntl(ends[1], F_SETPIPE_SZ, 4096);
        fcntl(reading_, F_SETFL, O_NONBLOCK);
        process_.emplace(std::vector<std::string>{binary(), "serve"}, settings, ends[1]);
        close(ends[1]);
        std::string const before = "app listening addresses=127.0.0.1:";
        REQUIRE(eventually([&] {
            read();
            auto const at = log_.find(before);
            if (at != log_.npos && log_.find('\n', at) != log_.npos) {
                port_ = static_cast<std::uint16_t>(std::atoi(log_.c_str() + at + before.size()));
            }
            return port_ != 0;
        }));
        REQUIRE(eventually([&] { return http_request(port_, "/readyz").status == 200; }));
    }
    ~unread_node() { close(reading_); }

    std::uint16_t port() const { return port_; }
    process& child() { return *process_; }

    // Takes what is in the pipe; returns all that was ever taken.
    std::string const& read() {
        char part[4096];
        for (ssize_t n; (n = ::read(reading_, part, sizeof part)) > 0;) {
            log_.append(part, static_cast<std::size_t>(n));
        }
        return log_;
    }
    double dropped() const {
        auto const text = http_request(port_, "/metrics").body;
        std::string const name = "\npresenced_log_lines_dropped_total ";
        auto const at = text.find(name);
        return at == text.npos ? -1 : std::atof(text.c_str() + at + name.size());
    }

private:
    int reading_ = -1;
    std::uint16_t port_ = 0;
    std::string log_;
    std::optional<process> process_;
};

} // namespace

TEST_CASE("a log that nobody reads delays no client, and what was dropped is told and counted") {
    world w;
    unread_node n{w.node_settings({{"PRESENCED_LISTEN", "127.0.0.1:0"},
                                   {"PRESENCED_LOG_LEVEL", "debug"},
                                   {"PRESENCED_THREADS", "1"}})};
    auto options = presenced::clients::cable_client_options{};
    options.port = n.port();
    options.token = w.token();
    auto const agent = w.add_agent();
    auto const neighbour = w.session(options);
    auto const talker = w.session(options);
    REQUIRE(n.dropped() == 0);

    // One debug line for each; more than the pipe and the queue hold.
    auto constexpr lines = 6'000;
    for (int i = 0; i < lines; ++i) {
        talker->subscribe(R"({"channel":"No"})");
        if (i % 500 == 0) {
            neighbour->subscribe(identifier(agent, std::to_string(i)));
            REQUIRE(neighbour->next() == "confirm " + identifier(agent, std::to_string(i)));
        }
    }
    for (int i = 0; i < lines; ++i) {
        REQUIRE(talker->next(60s) == R"(reject {"channel":"No"})");
    }
    CHECK(n.dropped() > 0);
    auto const pings = neighbour->pings().size();
    CHECK(eventually([&] { return neighbour->pings().size() >= pings + 3; }));
    neighbour->subscribe(identifier(agent, "last"));
    REQUIRE(neighbour->next() == "confirm " + identifier(agent, "last"));

    SECTION("once somebody reads again the rest comes, in order, with the gap named") {
        CHECK(eventually([&] {
            return n.read().find("subscribed conn=1 agent=", n.read().find("log lines dropped")) !=
                   std::string::npos;
        }));
        auto const& log = n.read();
        auto const gap = log.find(" warn log lines dropped count=");
        REQUIRE(gap != log.npos);
        CHECK(log.find("app serving") < gap);
        // One thread's lines stand in the order of their times.
        std::istringstream all{log};
        std::string before;
        for (std::string line; std::getline(all, line);) {
            if (line.find(" cable ") != line.npos) {
                CHECK(before <= line.substr(0, 24));
                before = line.substr(0, 24);
            }
        }
        CHECK(!before.empty());
    }
    SECTION("and a stop does not wait for it either") {
        n.child().signal(SIGTERM);
        CHECK(n.child().wait(10s) == 0);
        CHECK(w.rows() == 0);
    }
}

TEST_CASE("the last lines of a node are there when it has ended") {
    world w;
    auto const n = w.start_node();
    n->signal(SIGTERM);
    REQUIRE(n->wait() == 0);
    auto const log = n->log();
    CHECK(log.ends_with("app stopped exit=0\n"));
    auto const refused = w.presenced({"serve"}, {{"PRESENCED_LISTEN", "192.0.2.1:80"}});
    CHECK(refused.code == 1);
    CHECK(refused.errors.find("cannot start") != refused.errors.npos);
}

TEST_CASE("what strangers do by the hundred leaves a few lines a second, and a count") {
    world w;
    auto const n = w.start_node({{"PRESENCED_THREADS", "1"}});
    auto const refusals = [&](std::string const& event, auto refuse) {
        auto const before = n->log().size();
        auto const start = steady::now();
        auto refused = 0;
        for (; refused < 300; ++refused) {
            refuse(refused);
        }
        auto const seconds = since(start) / 1s + 2; // it may touch one more
        // The first line of another second tells of those before it.
        auto told = 0;
        auto written = 0;
        REQUIRE(eventually([&] {
            refuse(refused++);
            told = 0;
            written = 0;
            std::istringstream log{n->log().substr(before)};
            for (std::string line; std::getline(log, line);) {
                if (line.find(event) == line.npos) {
                    continue;
                }
                ++written;
                if (auto const at = line.find(" suppressed="); at != line.npos) {
                    told += std::atoi(line.c_str() + at + std::string{" suppressed="}.size());
                }
            }
            return written + told >= 300;
        }));
        CHECK(written + told <= refused);
        CHECK(told > 0);
        CHECK(written <= 10 * (seconds + since(start) / 1s + 1));
    };
    refusals("http token refused",
             [&](int i) { try_upgrade(n->port(), "/cable?token=wrong-" + std::to_string(i)); });
    refusals("http upgrade refused", [&](int) {
        try_upgrade(n->port(), "/cable", {{"Origin", "http://evil.example"}});
    });
}

TEST_CASE(
    "thousands of wrong flags leave a hundred lines a second, however many rounds they take") {
    world w;
    auto const n = w.start_node();
    auto const start = steady::now();
    w.sql().query("INSERT INTO agents (owner_id, routing_active) "
                  "SELECT 1, true FROM generate_series(1, 3000)");
    REQUIRE(eventually(
        [&] { return n->metric("presenced_sweep_repairs_total{cause=\"reconciled\"}") == 3000; },
        patience));
    auto written = 0;
    std::istringstream log{n->log()};
    for (std::string line; std::getline(log, line);) {
        written += line.find("sweep repaired") != line.npos ? 1 : 0;
    }
    CHECK(written > 0);
    CHECK(written <= 100 * (since(start) / 1s + 2));
}

TEST_CASE("a token that is refused or ends under a session is named by its number") {
    world w;
    auto const n = w.start_node();
    auto const c = w.session(*n);
    auto const id = w.sql().value("SELECT id FROM access_tokens");
    w.sql().query("UPDATE access_tokens SET revoked_at = now()");
    CHECK(c->next(40s) == "disconnect token_expired reconnect:false");
    CHECK(n->log_has("cable token ended conn=1 address=127.0.0.1 token=" + id + " owner=1"));
    try_upgrade(n->port(), "/cable?token=" + w.token());
    CHECK(n->log_has("cause=revoked token=" + id + " owner=1"));
    CHECK(n->log().find(w.token()) == std::string::npos);
}

TEST_CASE("characters that would steer a terminal reach neither log nor status") {
    world w;
    std::string const hostile = "\x1b[2J\xc2\x9b"
                                "31m\u202e\u2066\u200b\u2028 end";
    auto const is_clean = [](std::string const& text) {
        return text.find_first_of("\x1b\xc2\xe2") == text.npos;
    };
    SECTION("from a client's header") {
        auto const format = GENERATE(as<std::string>{}, "text", "json");
        auto const n = w.start_node({{"PRESENCED_LOG_FORMAT", format}});
        // A control character of C0 is no part of a header (RFC 9110 section 5.5).
        try_upgrade(n->port(), "/cable", {{"Origin", hostile.substr(4)}});
        CHECK(n->log_has("http upgrade refused"));
        CHECK(n->log_has("\\u009b31m\\u202e\\u2066\\u200b\\u2028 end"));
        CHECK(is_clean(n->log()));
    }
    SECTION("from a row") {
        w.sql().query("INSERT INTO agents (owner_id, name) VALUES (1, '" + hostile + "')");
        auto const shown = w.presenced({"agent", "list"});
        CHECK(shown.code == 0);
        CHECK(shown.output.find("\\u001b[2J\\u009b31m\\u202e\\u2066\\u200b\\u2028 end") !=
              std::string::npos);
        CHECK(is_clean(shown.output));
        auto const as_json = w.presenced({"agent", "list", "--json"});
        CHECK(as_json.output.find("\\u009b31m") != std::string::npos);
        CHECK(is_clean(as_json.output));
    }
}
