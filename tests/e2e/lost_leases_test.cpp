// Rows that are removed under live sessions, nodes that freeze longer than their leases last, and
// who goes on meanwhile (P4, P5, P9, P2).
// PRESENCED_E2E_FULL=1: at the default timings.
#include "tests/support/catch.hpp"
#include "tests/support/scaled_times.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <csignal>
#include <iostream>
#include <map>
#include <set>

using namespace presenced::tests;

namespace {

constexpr std::size_t sessions = 200;
constexpr std::size_t removed = 120;

std::set<std::string> tokens(world& w) {
    std::set<std::string> all;
    for (auto const& row : w.sql().query("SELECT token FROM agent_subscriptions")) {
        all.insert(row.front());
    }
    return all;
}

long flags(world& w) {
    return w.sql().number("SELECT count(*) FROM agents WHERE routing_active");
}

std::string removal(std::size_t count) {
    return "DELETE FROM agent_subscriptions WHERE token IN (SELECT token FROM agent_subscriptions "
           "ORDER BY agent_id LIMIT " +
           std::to_string(count) + ")";
}

// 200 sessions with an agent each, the first of them in the order of their agents.
struct crowd {
    world w{scaled_timings()};
    std::unique_ptr<node> n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    std::vector<std::int64_t> agents = w.add_agents(sessions);
    cable_loop loop;
    swarm all{loop, w.client_options(*n), agents, sessions};

    crowd() {
        if (!eventually([&] { return all.look().confirmed == sessions; }, 60s)) {
            throw std::runtime_error{"not all confirmed"};
        }
    }
};

} // namespace

TEST_CASE("120 rows of 200 removed by hand: 120 are told, 80 notice nothing, no row comes back") {
    crowd c;
    auto const before = tokens(c.w);
    auto const start = steady::now();
    c.w.sql().query(removal(removed));
    auto const kept = tokens(c.w);
    REQUIRE(kept.size() == sessions - removed);
    CHECK(eventually([&] { return flags(c.w) == long{sessions - removed}; }, sweep + slack));
    std::cout << removed << " rows of " << sessions << " removed: flags off after "
              << since(start).count() << " ms, ";
    CHECK(eventually([&] { return c.all.look().closed == removed; }, heartbeat + 1s + slack));
    std::cout << "sessions told after " << since(start).count() << " ms" << std::endl;
    CHECK(always([&] { return tokens(c.w) == kept; }, heartbeat + 2 * sweep));
    auto const counts = c.all.look();
    CHECK(counts.disconnects == std::map<std::string, std::size_t>{{"lease_lost", removed}});
    CHECK(counts.standing == sessions - removed);
    CHECK(c.n->metric("presenced_leases_lost_total") == removed);
    CHECK(flags(c.w) == long{sessions - removed});
    CHECK(c.w.sql().number("SELECT count(*) FROM routing_transitions WHERE NOT active") ==
          long{removed});
}

TEST_CASE("rows removed of clients that are gone, too: their flags are off within a sweep") {
    crowd c;
    c.all.freeze(0, sessions); // half-open: nothing tells the node
    auto const start = steady::now();
    c.w.sql().query(removal(removed));
    CHECK(eventually([&] { return flags(c.w) == long{sessions - removed}; }, sweep + slack));
    std::cout << removed << " rows of frozen clients removed: flags off after "
              << since(start).count() << " ms" << std::endl;
    CHECK(c.w.sql().number("SELECT count(*) FROM routing_transitions WHERE NOT active AND "
                           "reason = 'reconciled'") == long{removed});
}

TEST_CASE("a fresh row inserted by hand turns its flag on within a sweep") {
    world w{scaled_timings()};
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const start = steady::now();
    w.sql().query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (" +
                  std::to_string(agent) + ", 'by hand')");
    CHECK(w.becomes_active(agent, true, sweep + slack));
    std::cout << "a row inserted by hand: flag on after " << since(start).count() << " ms"
              << std::endl;
}

// Frozen while subscribes and releases go through it, so that batches are under way in its
// threads, in PostgreSQL and on the sockets between.
TEST_CASE("a node frozen in the middle of its batches delays nobody, and takes nothing back") {
    world w{scaled_timings()};
    auto const frozen = w.start_node({{"PRESENCED_NODE", "frozen"},
                                      {"DATABASE_URL", w.conninfo() + " application_name=frozen"}});
    auto const left = w.start_node({{"PRESENCED_NODE", "left"}});
    auto const its_sessions = [&](std::string const& which) {
        return w.sql().number("SELECT count(*) FROM pg_stat_activity WHERE datname = "
                              "current_database() AND application_name = 'frozen' AND " +
                              which);
    };
    auto const connected = its_sessions("true");
    constexpr std::size_t agent_count = 20;
    auto const agents = w.add_agents(agent_count);
    cable_loop loop;
    // Sessions that stand, and a stream of comings and goings on the same agents.
    swarm standing{loop, w.client_options(*frozen), agents, 100};
    REQUIRE(eventually([&] { return standing.look().confirmed == 100; }, 60s));
    swarm coming{loop, w.client_options(*frozen), agents, 400};
    REQUIRE(eventually([&] { return coming.look().confirmed >= 50; }, 60s));
    frozen->signal(SIGSTOP);
    auto const start = steady::now();

    // The same agents through the other node: whatever the frozen one had locked is free in time.
    std::vector<std::unique_ptr<cable>> others;
    for (auto const agent : agents) {
        others.push_back(w.session(*left));
        others.back()->subscribe(identifier(agent, "other"));
    }
    for (std::size_t i = 0; i < agent_count; ++i) {
        CHECK(others[i]->next() == "confirm " + identifier(agents[i], "other"));
    }
    CHECK(since(start) < 6s); // promised: other nodes go on within 6 s
    // Not because PostgreSQL gave the frozen node up: what it was sent ended by itself.
    CHECK(eventually([&] { return its_sessions("xact_start IS NOT NULL") == 0; }));
    CHECK(its_sessions("true") == connected);
    std::cout << "a node frozen in its batches: others subscribed to its agents after "
              << since(start).count() << " ms" << std::endl;

    // Its leases run out; the others' stay.
    CHECK(eventually([&] { return w.rows() == long{agent_count}; }, stale_after + sweep + slack));
    auto const kept = tokens(w);
    // Half of the agents are left by everybody now: a late release or acquire would show.
    for (std::size_t i = 0; i < agent_count / 2; ++i) {
        others[i]->close();
    }
    CHECK(eventually([&] { return flags(w) == long{agent_count / 2}; }, 1s + slack));
    auto const transitions = w.sql().number("SELECT count(*) FROM routing_transitions");

    frozen->signal(SIGCONT);
    // Whoever held a confirmed lease is told (P5); who was on the way in may be served anew.
    CHECK(eventually([&] { return standing.look().closed == 100; }, heartbeat + 1s + slack));
    CHECK(standing.look().disconnects == std::map<std::string, std::size_t>{{"lease_lost", 100}});
    coming.kill(0, 400);
    auto const only_others = [&] {
        return w.rows() == long{agent_count / 2} && flags(w) == long{agent_count / 2};
    };
    CHECK(eventually(only_others, heartbeat + 1s + slack));
    for (auto const& token : tokens(w)) {
        CHECK(kept.count(token) == 1);
    }
    CHECK(always(only_others, heartbeat));
    for (auto i = agent_count / 2; i < agent_count; ++i) {
        CHECK(others[i]->next(0ms) == "nothing");
        CHECK(w.transitions(agents[i]) == "on subscribed");
    }
    INFO("transitions before the thaw " << transitions);
    CHECK(frozen->get("/readyz").status == 200);
}

TEST_CASE("the sweep is taken over when the node that sweeps dies or freezes in the middle of it") {
    auto const how = GENERATE(SIGKILL, SIGSTOP);
    world w{scaled_timings()};
    auto const agents = w.add_agents(50);
    // Flags change slowly for once, so that there is a middle.
    constexpr auto middle = 2s;
    w.sql().query("CREATE TABLE gate AS SELECT true AS is_narrow;"
                  "CREATE FUNCTION at_the_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                  "IF (SELECT is_narrow FROM gate) THEN PERFORM pg_sleep(2); END IF; "
                  "RETURN NULL; END $$;"
                  "CREATE TRIGGER at_the_gate BEFORE UPDATE OF routing_active ON agents "
                  "FOR EACH STATEMENT EXECUTE FUNCTION at_the_gate()");
    std::map<std::string, std::unique_ptr<node>> nodes;
    for (auto const* name : {"one", "two"}) {
        nodes[name] = w.start_node({{"PRESENCED_NODE", name},
                                    {"DATABASE_URL", w.conninfo() + " application_name=" + name}});
    }
    w.sql().query("INSERT INTO agent_subscriptions (agent_id, token) SELECT id, 'hand ' || id "
                  "FROM agents");
    std::string sweeping;
    REQUIRE(eventually(
        [&] {
            sweeping = w.sql().value("SELECT application_name FROM pg_stat_activity WHERE "
                                     "datname = current_database() AND wait_event = 'PgSleep'");
            return !sweeping.empty();
        },
        2 * sweep + slack));
    nodes.at(sweeping)->signal(how);
    auto const start = steady::now();
    w.sql().query("UPDATE gate SET is_narrow = false");
    // What its backend was sent is done, because nothing of it was left to the node.
    CHECK(eventually([&] { return flags(w) == 50; }, middle + sweep + slack));
    w.sql().query("DELETE FROM agent_subscriptions WHERE agent_id <= " +
                  std::to_string(agents[24]));
    CHECK(eventually([&] { return flags(w) == 25; }, sweep + slack));
    std::cout << "the sweeping node " << (how == SIGKILL ? "killed" : "frozen")
              << " in the middle of a sweep: flags put right by the other one after "
              << since(start).count() << " ms" << std::endl;
    auto const& left = *nodes.at(sweeping == "one" ? "two" : "one");
    // The flags are off before the node has heard that they are.
    CHECK(eventually(
        [&] { return left.metric("presenced_sweep_repairs_total{cause=\"reconciled\"}") >= 25; }));
}
