// Settings that other tests leave as they come: each does what it says.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <filesystem>
#include <fstream>

#include <unistd.h>

using namespace presenced::tests;

TEST_CASE("the path and the channel names are the operator's") {
    world w;
    auto const n = w.start_node({{"PRESENCED_PATH", "/live/socket"},
                                 {"PRESENCED_CHANNELS", "RobotChannel,Fleet::RobotChannel"}});
    auto const agent = std::to_string(w.add_agent());
    CHECK(try_upgrade(n->port(), "/cable?token=" + w.token()).status == 404);
    auto options = w.client_options(*n);
    options.target = "/live/socket";
    auto const c = w.session(options);
    for (auto const* channel : {"RobotChannel", "Fleet::RobotChannel"}) {
        auto const known =
            R"({"channel":")" + std::string{channel} + R"(","agent_id":)" + agent + '}';
        c->subscribe(known);
        CHECK(c->next() == "confirm " + known);
    }
    auto const usual = identifier(std::stoll(agent));
    c->subscribe(usual);
    CHECK(c->next() == "reject " + usual);
    CHECK(n->metric("presenced_rejections_total{cause=\"unknown_channel\"}") == 1);
}

TEST_CASE("a connection holds max_subscriptions and no more, until it gives one back") {
    world w;
    auto const n = w.start_node({{"PRESENCED_MAX_SUBSCRIPTIONS", "2"}});
    auto const agent = w.add_agent();
    auto const first = identifier(agent, "1");
    auto const second = identifier(agent, "2");
    auto const third = identifier(agent, "3");
    auto const c = w.session(*n);
    c->subscribe(first);
    CHECK(c->next() == "confirm " + first);
    c->subscribe(second);
    CHECK(c->next() == "confirm " + second);
    c->subscribe(third);
    CHECK(c->next() == "reject " + third);
    CHECK(n->metric("presenced_rejections_total{cause=\"too_many_subscriptions\"}") == 1);
    CHECK(w.rows(agent) == 2);
    c->unsubscribe(first);
    c->subscribe(third);
    CHECK(c->next() == "confirm " + third);
    CHECK(w.has_rows(agent, 2));
}

TEST_CASE("a node takes as many connections to its database as it was given") {
    auto const count = GENERATE(5, 8);
    world w;
    auto const n = w.start_node({{"PRESENCED_DB_CONNECTIONS", std::to_string(count)}});
    auto const agents = w.add_agents(50);
    std::vector<std::unique_ptr<cable>> clients;
    for (auto const agent : agents) {
        clients.push_back(w.session(*n));
        clients.back()->subscribe(identifier(agent));
    }
    for (auto i = 0U; i < agents.size(); ++i) {
        CHECK(clients[i]->next() == "confirm " + identifier(agents[i]));
    }
    CHECK(w.sql().number("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                         "AND application_name = 'presenced'") == count);
}

TEST_CASE("flips are kept for transitions_keep, and older ones leave with a sweep") {
    world w;
    auto const n = w.start_node({{"PRESENCED_TRANSITIONS_KEEP", "2h"}});
    auto const agent = std::to_string(w.add_agent());
    w.sql().query("INSERT INTO routing_transitions (agent_id, active, reason, at) VALUES "
                  "(" +
                  agent +
                  ", true, 'subscribed', now() - interval '3 hours'), "
                  "(" +
                  agent + ", false, 'disconnected', now() - interval '1 hour')");
    CHECK(eventually([&] { return w.transitions(std::stoll(agent)) == "off disconnected"; }));
}

TEST_CASE("the connection string comes out of a file, where it is no part of the environment") {
    world w;
    auto const file = std::filesystem::temp_directory_path() /
                      ("presenced-database-url-" + std::to_string(::getpid()));
    struct removed {
        std::filesystem::path path;
        ~removed() { std::filesystem::remove(path); }
    } const at_end{file};
    auto settings = w.node_settings({{"DATABASE_URL_FILE", file.string()}});
    settings.erase("DATABASE_URL");

    auto const missing = run({binary(), "serve"}, settings);
    CHECK(missing.code == 2);
    CHECK(missing.errors.find("DATABASE_URL_FILE") != missing.errors.npos);
    CHECK(missing.errors.find(file.string()) != missing.errors.npos);

    std::ofstream{file} << w.conninfo() << '\n'; // as an editor leaves it
    node n{settings};
    n.await_ready();
    CHECK_NOTHROW(w.subscriber(n, w.add_agent()));
}
