// Who a node depends on, gone: the client, another node, the database.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <csignal>

using namespace presenced::tests;

namespace {

// The timings of a_tenth().
constexpr auto stale_after = 4'500ms;
constexpr auto sweep = 500ms;
constexpr auto peer_timeout = 3'000ms;
constexpr auto slack = 1'000ms;

// A few sessions of a few agents, which should not notice what happens to the database.
struct sitting {
    sitting(world& w, node const& n)
        : agents{w.add_agents(3)} {
        for (int i = 0; i < 9; ++i) {
            clients.push_back(w.subscriber(n, agents[static_cast<std::size_t>(i % 3)]));
        }
    }

    // Every socket open, every row there, every flag on since the beginning. `after` is a session
    // of its own, because the world's may have been cut.
    bool is_untouched(sql_session& after) {
        for (auto const& c : clients) {
            if (c->next(0ms) != "nothing") {
                return false;
            }
        }
        return after.number("SELECT count(*) FROM agent_subscriptions") == 9 &&
               after.number("SELECT count(*) FROM live_agent_subscriptions") == 9 &&
               after.number("SELECT count(*) FROM agents WHERE routing_active") == 3 &&
               after.number("SELECT count(*) FROM routing_transitions") == 3;
    }

    bool is_renewed(sql_session& after) {
        auto const oldest = after.value("SELECT min(last_seen_at) FROM agent_subscriptions");
        return eventually([&] {
            return after.value("SELECT min(last_seen_at) > '" + oldest +
                               "' FROM agent_subscriptions") == "t";
        });
    }

    std::vector<std::int64_t> agents;
    std::vector<std::unique_ptr<cable>> clients;
};

} // namespace

TEST_CASE("a client that is frozen is off after peer_timeout, and told why if it wakes up") {
    world w;
    auto const n = w.start_node();
    auto const agent = w.add_agent();
    auto const other = w.add_agent();
    auto const c = w.subscriber(*n, agent);
    auto const answering = w.subscriber(*n, other);
    auto const start = steady::now();
    c->stop_reading();
    CHECK(w.becomes_active(agent, false, peer_timeout + 1s + slack));
    CHECK(since(start) >= peer_timeout - 1s); // a ping may have been answered just before
    c->resume_reading();
    CHECK(c->next() == "disconnect no_pong reconnect:true");
    CHECK(c->next().substr(0, 6) == "closed");
    CHECK(w.transitions(agent) == "on subscribed, off disconnected");
    CHECK(n->metric("presenced_disconnects_total{reason=\"no_pong\"}") == 1);
    // Answering pings is enough; this client never sends anything else.
    CHECK(always([&] { return w.is_active(other); }, 2 * peer_timeout));
    CHECK(answering->native_pings() >= 4);
    CHECK(answering->next(0ms) == "nothing");
}

TEST_CASE("a node that is killed: another one turns its agents off after stale_after") {
    world w;
    auto const dying = w.start_node({{"PRESENCED_NODE", "dying"}});
    auto const left = w.start_node({{"PRESENCED_NODE", "left"}});
    auto const agent = w.add_agent();
    auto const shared = w.add_agent();
    auto const other = w.add_agent();
    auto const orphan = w.subscriber(*dying, agent);
    auto const orphan_too = w.subscriber(*dying, shared);
    auto const partner = w.subscriber(*left, shared);
    auto const bystander = w.subscriber(*left, other);
    dying->signal(SIGKILL);
    REQUIRE(dying->wait() == 128 + SIGKILL);
    auto const start = steady::now();
    CHECK(orphan->next() == "closed 1006");
    CHECK(w.becomes_active(agent, false, stale_after + sweep + slack));
    CHECK(since(start) > stale_after - 1'500ms - slack); // it had been renewed a heartbeat ago
    CHECK(w.transitions(agent) == "on subscribed, off expired");
    CHECK(w.has_rows(shared, 1, stale_after + sweep + slack));
    CHECK(w.is_active(shared));
    CHECK(w.is_active(other));
    CHECK(partner->next(0ms) == "nothing");
    CHECK(bystander->next(0ms) == "nothing");
}

TEST_CASE("a node that is frozen is like one that is killed, until it wakes up") {
    world w;
    auto const frozen = w.start_node({{"PRESENCED_NODE", "frozen"}});
    auto const left = w.start_node({{"PRESENCED_NODE", "left"}});
    auto const agent = w.add_agent();
    auto const c = w.subscriber(*frozen, agent);
    auto const bystander = w.subscriber(*left, w.add_agent());
    frozen->signal(SIGSTOP);
    CHECK(w.becomes_active(agent, false, stale_after + sweep + slack));
    frozen->signal(SIGCONT);
    // P5: whoever is connected has its row or is told to come back.
    CHECK(c->next() == "disconnect lease_lost reconnect:true");
    CHECK(w.transitions(agent) == "on subscribed, off expired");
    CHECK(bystander->next(0ms) == "nothing");
    auto const again = w.subscriber(*frozen, agent);
    CHECK(w.is_active(agent));
}

TEST_CASE("the only node frozen for longer than stale_after loses nobody") {
    world w;
    auto const n = w.start_node();
    sitting all{w, *n};
    n->signal(SIGSTOP);
    auto const start = steady::now();
    CHECK(always([&] { return w.rows() == 9; }, stale_after + 3 * sweep));
    CHECK(since(start) > stale_after);
    n->signal(SIGCONT);
    CHECK(all.is_renewed(w.sql()));
    CHECK(all.is_untouched(w.sql()));
    CHECK(always([&] { return all.is_untouched(w.sql()); }, 3 * sweep));
}

TEST_CASE("a restart of the database costs no session its row, its flag or its socket") {
    auto const how = GENERATE(postgres::shutdown::fast, postgres::shutdown::immediate);
    postgres own;
    world w{a_tenth(), own};
    auto const n = w.start_node();
    sitting all{w, *n};
    own.restart(how);
    auto after = w.another_session();
    CHECK(all.is_renewed(after));
    CHECK(all.is_untouched(after));
    n->await_ready();
    // The node is as good as before.
    auto const c = w.subscriber(*n, all.agents.front());
    all.clients.back()->close();
    CHECK(eventually([&] { return after.number("SELECT count(*) FROM agent_subscriptions") == 9; },
                     2s));
}

TEST_CASE("the database away for longer than stale_after counts against nobody") {
    postgres own;
    world w{a_tenth(), own};
    auto const n = w.start_node();
    sitting all{w, *n};
    auto const leaving = w.subscriber(*n, all.agents.front());
    auto const unsubscribing = w.subscriber(*n, all.agents.front());
    own.stop();
    auto const start = steady::now();
    REQUIRE(eventually([&] { return n->get("/readyz").status == 503; }));
    CHECK(n->get("/healthz").status == 200);
    CHECK(n->metric("presenced_database_up") == 0);

    // What happens meanwhile is kept: a session that goes, and one that comes.
    leaving->close();
    unsubscribing->unsubscribe(identifier(all.agents.front()));
    auto const upgraded = w.connect(*n);
    CHECK(upgraded->next() == "refused 503"); // nobody can look its token up
    CHECK(since(start) >= 4s);                // it was given 5 s
    REQUIRE(eventually([&] { return since(start) > stale_after + 2 * sweep; }));
    unsubscribing->subscribe(identifier(all.agents.back(), "late"));
    own.start();
    CHECK(unsubscribing->next() == "confirm " + identifier(all.agents.back(), "late"));
    auto after = w.another_session();
    CHECK(
        eventually([&] { return after.number("SELECT count(*) FROM agent_subscriptions") == 10; }));
    unsubscribing->close();
    CHECK(
        eventually([&] { return after.number("SELECT count(*) FROM agent_subscriptions") == 9; }));
    CHECK(all.is_renewed(after));
    CHECK(always([&] { return all.is_untouched(after); }, stale_after));
}

TEST_CASE("a node cut off from the database for too long sends its clients to others") {
    postgres own;
    world w{a_tenth(), own};
    auto const n = w.start_node({{"PRESENCED_UNREACHABLE_LIMIT", "1s"}});
    sitting all{w, *n};
    own.stop();
    for (auto const& c : all.clients) {
        CHECK(c->next() == "disconnect unavailable reconnect:true");
        CHECK(c->next() == "closed 1000");
    }
    own.start();
    auto after = w.another_session();
    CHECK(eventually([&] {
        return after.number("SELECT count(*) FROM agent_subscriptions") == 0 &&
               after.number("SELECT count(*) FROM agents WHERE routing_active") == 0;
    }));
    n->await_ready();
}
