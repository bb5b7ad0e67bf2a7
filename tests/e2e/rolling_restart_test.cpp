// Two nodes behind haproxy, as in docs/proxy/haproxy.cfg, restarted one after the other under
// sessions that come back by themselves, as clients do.
// PRESENCED_E2E_FULL=1: 5,000 sessions, and its times are judged. They want a machine of their own
// and a build without sanitizers:
//   cmake --preset release -B build/figures -DPRESENCED_TESTS=ON
//   cmake --build build/figures --target e2e_rolling_restart
//   PRESENCED_E2E_FULL=1 build/figures/tests/e2e/e2e_rolling_restart
#include "tests/support/catch.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>
#include <vector>

using namespace presenced::tests;

namespace {

auto const sessions = static_cast<std::size_t>(is_full_size() ? 5'000 : 300);
// The clients' own: from the end of a connection to the next one.
constexpr auto reconnect_delay = 1s;

// haproxy with the file of the documentation, but for addresses, sizes, log and TLS.
class haproxy {
public:
    explicit haproxy(std::vector<int> const& nodes)
        : port_{static_cast<std::uint16_t>(free_port())}
        , process_{{"/usr/sbin/haproxy", "-db", "-f", write(nodes)}, {}} {
        if (!eventually([&] { return accepts(); })) {
            throw std::runtime_error{"haproxy does not listen: " + process_.errors()};
        }
    }
    ~haproxy() { std::filesystem::remove(file_); }

    std::uint16_t port() const { return port_; }

private:
    std::string write(std::vector<int> const& nodes) {
        std::ifstream in{PRESENCED_SOURCE_DIR "/docs/proxy/haproxy.cfg"};
        std::ostringstream text;
        text << in.rdbuf();
        auto config = text.str();
        auto const change = [&](std::string const& from, std::string const& to) {
            auto const at = config.find(from);
            if (at == config.npos) {
                throw std::runtime_error{"docs/proxy/haproxy.cfg does not hold: " + from};
            }
            config.replace(at, from.size(), to);
        };
        change("    user haproxy\n", "");
        change("    group haproxy\n", "");
        change("    chroot /var/lib/haproxy\n", "");
        change("log /dev/log local0", "log stdout format raw local0 err");
        change("fd-hard-limit 65536", "fd-hard-limit 20000");
        change("bind :443 ssl crt /etc/haproxy/presenced.pem alpn http/1.1",
               "bind 127.0.0.1:" + std::to_string(port_));
        change("10.0.0.11:8080", "127.0.0.1:" + std::to_string(nodes.at(0)));
        std::string others = "127.0.0.1:" + std::to_string(nodes.at(1)) + '\n';
        for (std::size_t i = 2; i < nodes.size(); ++i) {
            others += "    server node" + std::to_string(i + 1) +
                      " 127.0.0.1:" + std::to_string(nodes[i]) + '\n';
        }
        change("10.0.0.12:8080", others);
        std::ofstream{file_} << config;
        return file_;
    }
    bool accepts() {
        try {
            raw_connection{port_};
            return true;
        } catch (std::system_error const&) {
            return false;
        }
    }

    std::string file_ = "/tmp/presenced-test-haproxy-" + std::to_string(getpid()) + ".cfg";
    std::uint16_t port_;
    process process_;
};

constexpr auto failed_transitions = "presenced_database_failures_total{statement=\"transition\"}";

// Looks at a node as long as it answers, for what there is most of.
class onlooker {
public:
    explicit onlooker(node const& n)
        : thread_{[this, &n] {
            while (!stopping_) {
                try {
                    auto const m = n.metrics();
                    for (auto const& [name, value] : m) {
                        if (name.starts_with("presenced_queue_depth")) {
                            deepest_ = std::max(deepest_, value);
                        }
                        if (name == failed_transitions) {
                            failed_ = std::max(failed_, value);
                        }
                    }
                } catch (std::exception const&) { // it starts or has ended
                }
                std::this_thread::sleep_for(20ms);
            }
        }} {}
    ~onlooker() { end(); }

    double deepest_queue() {
        end();
        return deepest_;
    }
    double failed() {
        end();
        return failed_;
    }

private:
    void end() {
        stopping_ = true;
        if (thread_.joinable()) {
            thread_.join();
        }
    }

    std::atomic<bool> stopping_{false};
    double deepest_ = 0; // the thread's, until it has ended
    double failed_ = 0;
    std::thread thread_;
};

// Sessions of somebody else's, in a database of their own, that notify as fast as they commit.
class notifiers {
public:
    notifiers(postgres& server, std::size_t count)
        : conninfo_{server.create_database(false)} {
        for (std::size_t i = 0; i < count; ++i) {
            threads_.emplace_back([this] {
                for (sql_session session{conninfo_}; !stopping_;) {
                    // Without a record of its own the commit would wait for nobody.
                    session.query(
                        "SELECT pg_logical_emit_message(true, 'theirs', ''); NOTIFY theirs");
                    ++commits_;
                }
            });
        }
    }
    ~notifiers() {
        stopping_ = true;
        for (auto& t : threads_) {
            t.join();
        }
    }

    long commits() const { return commits_; }

private:
    std::string conninfo_;
    std::atomic<bool> stopping_{false};
    std::atomic<long> commits_{0};
    std::vector<std::thread> threads_;
};

// Samples of a histogram over `limit`: what its buckets say.
double more_than(node const& n, std::string const& lane, int limit) {
    auto const series = "{lane=\"" + lane + "\"";
    return n.metric("presenced_batch_size_count" + series + "}") -
           n.metric("presenced_batch_size_bucket" + series + ",le=\"" + std::to_string(limit) +
                    "\"}");
}

} // namespace

TEST_CASE("a rolling restart costs nobody more than a reconnect") {
    REQUIRE(raise_descriptor_limit() > 2 * sessions + 500);
    world w{timings(1, 1)};
    int const ports[] = {free_port(), free_port()};
    auto const start_node = [&](int i) {
        return w.start_node({{"PRESENCED_NODE", "node" + std::to_string(i)},
                             {"PRESENCED_LISTEN", "127.0.0.1:" + std::to_string(ports[i])},
                             {"PRESENCED_TRUSTED_PROXIES", "127.0.0.1"},
                             {"PRESENCED_LOG_LEVEL", "info"}});
    };
    std::unique_ptr<node> nodes[] = {start_node(0), start_node(1)};
    haproxy const proxy{{ports[0], ports[1]}};
    auto options = w.client_options(*nodes[0]);
    options.port = proxy.port();
    auto const agents = w.add_agents(sessions);
    cable_loop loop;
    swarm crowd{loop, options, agents, sessions, 256, reconnect_delay};
    REQUIRE(eventually([&] { return crowd.look().standing == sessions; }, 120s));
    REQUIRE(crowd.look().refused == 0);
    for (auto const& n : nodes) {
        CHECK(n->metric("presenced_connections") > 0.4 * static_cast<double>(sessions));
    }

    double deepest = 0;
    for (int i : {0, 1}) {
        auto const moving = static_cast<long>(nodes[i]->metric("presenced_connections"));
        onlooker other{*nodes[1 - i]};
        onlooker own{*nodes[i]};
        auto const start = steady::now();
        nodes[i]->signal(SIGTERM);
        CHECK(nodes[i]->wait(40s) == 0);
        auto const drained = since(start);
        CHECK(eventually([&] { return crowd.look().standing == sessions; }, 60s));
        std::cout << "node" << i << ": " << moving << " sessions sent away, released and exit 0 in "
                  << drained.count() << " ms, all back on the other node after "
                  << since(start).count() << " ms" << std::endl;
        deepest = std::max({deepest, own.deepest_queue(), other.deepest_queue()});
        CHECK(nodes[1 - i]->metric("presenced_batch_size_count{lane=\"transition\"}") > 0);
        for (auto const* lane : {"transition", "busy"}) {
            CHECK(more_than(*nodes[1 - i], lane, 200) == 0);
        }
        nodes[i] = start_node(i);
        // An operator goes on when the proxy sends sessions there again.
        CHECK(eventually(
            [&] {
                auto const probe = w.session(options);
                return nodes[i]->metric("presenced_connections_opened_total") > 0;
            },
            15s));
    }

    auto const counts = crowd.look();
    CHECK(counts.refused == 0);
    CHECK(counts.rejected == 0);
    CHECK(counts.disconnects ==
          std::map<std::string, std::size_t>{{"server_restart", counts.closed}});
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE routing_active") ==
          static_cast<long>(sessions));
    CHECK(w.rows() == static_cast<long>(sessions));
    CHECK(deepest < 65'536);

    // As others saw it: each time an agent was off.
    w.sql().query("CREATE TEMP TABLE gaps AS SELECT 1000 * extract(epoch FROM back - at) AS ms, at "
                  "FROM (SELECT at, active, lead(at) OVER (PARTITION BY agent_id ORDER BY id) AS "
                  "back FROM routing_transitions) t WHERE NOT active");
    auto const part = [&](double p) {
        return milliseconds{w.sql().number("SELECT percentile_disc(" + std::to_string(p) +
                                           ") WITHIN GROUP (ORDER BY ms)::bigint FROM gaps")};
    };
    CHECK(w.sql().number("SELECT count(*) FROM gaps WHERE ms IS NULL") == 0);
    CHECK(w.sql().number("SELECT count(*) FROM gaps") == static_cast<long>(counts.closed));
    // The pace: at least 1,000 a second, more only when half the deadline asks for it.
    auto const fastest = w.sql().number(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM gaps GROUP BY date_trunc('second', at)) t");
    if (is_full_size()) {
        CHECK(part(0.99) <= reconnect_delay + 1s);
    }
    CHECK(fastest <= 2'000);
    std::cout << sessions << " sessions behind haproxy, two nodes restarted: " << counts.closed
              << " moves, refused " << counts.refused << "; an agent off, ms: median "
              << part(0.5).count() << ", 99 % " << part(0.99).count() << ", most "
              << part(1).count()
              << " (the client's own delay: " << milliseconds{reconnect_delay}.count()
              << "); sent away at most " << fastest << " a second, deepest queue " << deepest
              << std::endl;
}

// A commit that flips a flag holds PostgreSQL's one lock for notifications until the standby has
// answered: the commits of all nodes stand in one line. Nobody who waits in it is at fault.
TEST_CASE("a rolling restart of six nodes whose commits wait in line costs a reconnect only") {
    constexpr std::size_t node_count = 6;
    auto const crowd_size = static_cast<std::size_t>(is_full_size() ? 3'000 : 240);
    auto const restarts = is_full_size() ? node_count : 2;
    REQUIRE(raise_descriptor_limit() > 2 * crowd_size + 500);
    postgres primary;
    world w{timings(1, 1), primary};
    tcp_proxy replication{static_cast<std::uint16_t>(primary.port())};
    postgres standby{replication.port()};
    w.sql().query("ALTER SYSTEM SET synchronous_standby_names = '*'");
    w.sql().query("SELECT pg_reload_conf()");
    REQUIRE(eventually(
        [&] { return w.sql().value("SELECT sync_state FROM pg_stat_replication") == "sync"; }));
    replication.delay(20ms, tcp_proxy::towards::client);

    std::vector<int> ports;
    for (std::size_t i = 0; i < node_count; ++i) {
        ports.push_back(free_port());
    }
    auto const start_node = [&](std::size_t i) {
        return w.start_node({{"PRESENCED_NODE", "node" + std::to_string(i)},
                             {"PRESENCED_LISTEN", "127.0.0.1:" + std::to_string(ports[i])},
                             {"PRESENCED_TRUSTED_PROXIES", "127.0.0.1"},
                             {"PRESENCED_LOG_LEVEL", "info"}});
    };
    std::vector<std::unique_ptr<node>> nodes;
    for (std::size_t i = 0; i < node_count; ++i) {
        nodes.push_back(start_node(i));
    }
    haproxy const proxy{ports};
    auto options = w.client_options(*nodes[0]);
    options.port = proxy.port();
    auto const agents = w.add_agents(crowd_size);
    cable_loop loop;
    swarm crowd{loop, options, agents, crowd_size, 256, reconnect_delay};
    REQUIRE(eventually([&] { return crowd.look().standing == crowd_size; }, 120s));
    // With these in front, the line is longer than a lane may wait for a lock.
    notifiers others{primary, 30};
    REQUIRE(eventually([&] { return others.commits() > 60; }));
    auto const start = steady::now();
    double failed = 0;
    int suspected = 0; // nodes that suspected somebody
    for (std::size_t i = 0; i < restarts; ++i) {
        onlooker own{*nodes[i]};
        auto const began = steady::now();
        nodes[i]->signal(SIGTERM);
        CHECK(nodes[i]->wait(40s) == 0);
        failed += own.failed();
        suspected += nodes[i]->log().find("agent suspected") != std::string::npos ? 1 : 0;
        CHECK(eventually([&] { return crowd.look().standing == crowd_size; }, 60s));
        std::cout << "node" << i << " of " << node_count << ": all back on the others after "
                  << since(began).count() << " ms" << std::endl;
        nodes[i] = start_node(i);
    }
    for (auto const& n : nodes) {
        failed += n->metric(failed_transitions);
        suspected += n->log().find("agent suspected") != std::string::npos ? 1 : 0;
    }
    auto const counts = crowd.look();
    std::cout << crowd_size << " sessions, " << node_count
              << " nodes, commits that take 20 ms: " << restarts << " restarts in "
              << since(start).count() << " ms, " << others.commits() << " commits of others, "
              << counts.closed << " moves, transactions rolled back " << failed
              << ", nodes that suspected an agent " << suspected << std::endl;
    CHECK(counts.refused == 0);
    CHECK(counts.rejected == 0);
    CHECK(counts.disconnects ==
          std::map<std::string, std::size_t>{{"server_restart", counts.closed}});
    CHECK(w.sql().number("SELECT count(*) FROM agents WHERE routing_active") ==
          static_cast<long>(crowd_size));
    CHECK(w.rows() == static_cast<long>(crowd_size));
    // Those that are rolled back have waited in the busy lane for an agent whose other transaction
    // is in the line.
    CHECK(suspected == 0);
}
