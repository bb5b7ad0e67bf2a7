// Another database server takes over, or the same one has another time.
// PRESENCED_E2E_FULL=1: at the default timings.
#include "tests/support/catch.hpp"
#include "tests/support/scaled_times.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <csignal>
#include <iostream>

using namespace presenced::tests;
using towards = tcp_proxy::towards;

namespace {

constexpr std::size_t sessions = 100;

// A primary, a standby of it, and a node that knows both.
struct pair {
    postgres primary;
    world w{scaled_timings(), primary};
    tcp_proxy replication{static_cast<std::uint16_t>(primary.port())};
    postgres standby{replication.port()};
    std::string database = w.sql().value("SELECT current_database()");
    // The standby first: it answers, too, and is not what a node wants.
    std::string url = "postgresql://postgres@127.0.0.1:" + std::to_string(standby.port()) +
                      ",127.0.0.1:" + std::to_string(primary.port()) + "/" + database;
    std::unique_ptr<node> n;
    cable_loop loop;

    void start_node() {
        n = w.start_node({{"DATABASE_URL", url}, {"PRESENCED_LOG_LEVEL", "info"}});
    }

    void make_synchronous() {
        w.sql().query("ALTER SYSTEM SET synchronous_standby_names = '*'");
        w.sql().query("SELECT pg_reload_conf()");
        if (!eventually([&] {
                return w.sql().value("SELECT sync_state FROM pg_stat_replication") == "sync";
            })) {
            throw std::runtime_error{"the standby does not get synchronous"};
        }
    }

    bool standby_has(long rows) {
        sql_session on_standby{standby.conninfo(database)};
        return eventually(
            [&] { return on_standby.number("SELECT count(*) FROM agent_subscriptions") == rows; });
    }
};

bool all_confirmed(swarm const& crowd) {
    return eventually([&] { return crowd.look().confirmed == sessions; }, 60s);
}

struct counted {
    long rows;
    long live;
    long flags;
    long flips;
};
counted count(sql_session& on) {
    return {on.number("SELECT count(*) FROM agent_subscriptions"),
            on.number("SELECT count(*) FROM live_agent_subscriptions"),
            on.number("SELECT count(*) FROM agents WHERE routing_active"),
            on.number("SELECT count(*) FROM routing_transitions")};
}

} // namespace

TEST_CASE("a standby that lags is not asked whom a token is of, nor by the commands") {
    pair p;
    p.start_node();
    REQUIRE(p.standby_has(0));
    p.replication.black_hole(towards::client);
    auto const agent = p.w.add_agent();
    auto options = p.w.client_options(*p.n);
    options.token = p.w.add_token();
    auto const c = p.w.session(options);
    auto const mine = identifier(agent);
    c->subscribe(mine);
    CHECK(c->next() == "confirm " + mine);
    auto const issued =
        p.w.presenced({"token", "issue", "--owner", "1"}, {{"DATABASE_URL", p.url}});
    INFO(issued.errors);
    CHECK(issued.code == 0);
}

TEST_CASE("a fail-over to a synchronous standby loses nothing") {
    pair p;
    p.make_synchronous();
    p.start_node();
    swarm crowd{p.loop, p.w.client_options(*p.n), p.w.add_agents(sessions), sessions};
    REQUIRE(all_confirmed(crowd));
    p.primary.stop(postgres::shutdown::immediate);
    p.standby.promote();
    auto const start = steady::now();
    sql_session after{p.standby.conninfo(p.database)};
    auto const oldest = after.value("SELECT min(last_seen_at) FROM agent_subscriptions");
    CHECK(eventually([&] {
        return after.value("SELECT min(last_seen_at) > '" + oldest +
                           "' FROM agent_subscriptions") == "t";
    }));
    std::cout << "fail-over to a synchronous standby: every lease renewed there after "
              << since(start).count() << " ms";
    p.n->await_ready();
    CHECK(always([&] { return crowd.look().closed == 0; }, stale_after + 2 * sweep));
    auto const now = count(after);
    CHECK(now.rows == long{sessions});
    CHECK(now.live == long{sessions});
    CHECK(now.flags == long{sessions});
    CHECK(now.flips == long{sessions});
    std::cout << ", rows lost " << long{sessions} - now.rows << ", flips "
              << now.flips - long{sessions} << ", sockets closed " << crowd.look().closed
              << std::endl;
}

TEST_CASE("a fail-over to an asynchronous standby: what had not arrived there is told so") {
    pair p;
    p.start_node();
    swarm arrived{p.loop, p.w.client_options(*p.n), p.w.add_agents(sessions), sessions};
    REQUIRE(all_confirmed(arrived));
    REQUIRE(p.standby_has(sessions));
    // From now on nothing reaches the standby, and then the primary is gone.
    p.replication.black_hole(towards::client);
    swarm late{p.loop, p.w.client_options(*p.n), p.w.add_agents(sessions), sessions};
    REQUIRE(all_confirmed(late));
    p.primary.stop(postgres::shutdown::immediate);
    p.replication.refuse();
    p.standby.promote();
    auto const start = steady::now();
    sql_session after{p.standby.conninfo(p.database)};
    CHECK(eventually([&] { return late.look().closed == sessions; },
                     heartbeat + 1s + scaled(3s) + slack)); // 3 s: until it has connected again
    std::cout << "fail-over to an asynchronous standby: " << sessions
              << " sessions that had not arrived there told after " << since(start).count() << " ms"
              << std::endl;
    CHECK(late.look().disconnects == std::map<std::string, std::size_t>{{"lease_lost", sessions}});
    CHECK(always([&] { return arrived.look().closed == 0; }, stale_after + 2 * sweep));
    auto const now = count(after);
    CHECK(now.rows == long{sessions});
    CHECK(now.live == long{sessions});
    CHECK(now.flags == long{sessions});
    CHECK(now.flips == long{sessions});
    p.n->await_ready();
}

TEST_CASE("the database's clock stepped by an hour, either way, costs nobody anything") {
    auto const first = GENERATE(1, -1);
    if (first < 0 && !is_full_size()) {
        return; // the way back from the other one is a step back, too
    }
    postgres server{{}, postgres::clock::own};
    world w{scaled_timings(), server};
    auto const one = w.start_node({{"PRESENCED_NODE", "one"}});
    auto const two = w.start_node({{"PRESENCED_NODE", "two"}});
    cable_loop loop;
    auto const agents = w.add_agents(sessions);
    swarm crowd{loop, w.client_options(*one), agents, sessions};
    REQUIRE(all_confirmed(crowd));
    auto const frozen_agent = w.add_agent();
    auto const orphaned_agent = w.add_agent();
    auto const frozen = w.subscriber(*one, frozen_agent);
    auto const orphan = w.subscriber(*two, orphaned_agent);
    auto const hour = w.sql().value("SELECT clock_timestamp()");
    server.set_clock(first * std::chrono::seconds{3600});
    auto const start = steady::now();
    CHECK(w.sql().value("SELECT abs(extract(epoch FROM clock_timestamp() - '" + hour +
                        "')) > 3000") == "t");
    // Who ends after the step is off in time, by every way there is.
    crowd.close(0, 1);
    CHECK(w.becomes_active(agents[0], false, 1s + slack));
    frozen->stop_reading();
    CHECK(w.becomes_active(frozen_agent, false, peer_timeout + 1s + slack));
    two->signal(SIGKILL);
    auto const killed = steady::now();
    CHECK(w.becomes_active(orphaned_agent, false, stale_after + sweep + slack));
    std::cout << "clock stepped by " << first << " h: a node killed later is swept after "
              << since(killed).count() << " ms";
    CHECK(since(start) > stale_after);
    // And back, which is the other direction.
    server.set_clock(std::chrono::seconds{0});
    CHECK(always([&] { return crowd.look().closed == 1; }, stale_after + 2 * sweep));
    auto const now = count(w.sql());
    CHECK(now.rows == long{sessions - 1});
    CHECK(now.live == long{sessions - 1});
    CHECK(now.flags == long{sessions - 1});
    CHECK(now.flips == long{sessions + 1 + 2 * 2});
    std::cout << "; rows lost " << long{sessions - 1} - now.rows << ", flips "
              << now.flips - long{sessions + 1 + 2 * 2} << std::endl;
    CHECK(w.sql().value("SELECT presence_known()") == "t");
    one->await_ready();
}
