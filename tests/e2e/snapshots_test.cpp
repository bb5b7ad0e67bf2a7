// Three nodes on one database, clients that come and go in every way, and a reader who compares
// the flags with the rows in snapshot after snapshot (P1).
// PRESENCED_E2E_SECONDS: how long (15).
#include "tests/support/catch.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/world.hpp"

#include <boost/asio/steady_timer.hpp>

#include <atomic>
#include <csignal>
#include <iostream>
#include <random>
#include <variant>

using namespace presenced::tests;
namespace clients = presenced::clients;
namespace protocol = presenced::protocol;

namespace {

struct tally {
    std::atomic<long> subscribes{0};
    std::atomic<long> confirms{0};
    std::atomic<long> unsubscribes{0};
    std::atomic<long> closes{0};
    std::atomic<long> kills{0};
    std::atomic<long> surprises{0}; // rejections, disconnects, refusals
};

// A client without a plan. Everything on the loop's thread.
class wanderer final : clients::cable_client_handler {
public:
    wanderer(cable_loop& loop, std::vector<clients::cable_client_options> doors,
             std::vector<std::int64_t> agents, unsigned seed, tally& sums)
        : loop_{loop}
        , doors_{std::move(doors)}
        , agents_{std::move(agents)}
        , random_{seed}
        , sums_{sums}
        , timer_{loop.context()} {}

    void connect() {
        clients::cable_client_handler& handler = *this;
        client_ = std::make_unique<clients::cable_client>(loop_.context(),
                                                          doors_[pick(doors_.size())], handler);
        client_->start();
    }

    // Closes, and does not come back.
    void leave() {
        leaving_ = true;
        timer_.cancel();
        if (client_ && client_->is_open()) {
            client_->close();
        } else {
            client_.reset();
        }
    }
    bool is_gone() const { return leaving_ && (!client_ || !client_->is_open()); }

private:
    void on_message(protocol::server_message const& message) override {
        if (std::holds_alternative<protocol::welcome_message>(message)) {
            soon(30, &wanderer::come);
        } else if (auto const* c = std::get_if<protocol::confirm_message>(&message)) {
            ++sums_.confirms;
            if (c->identifier == held_) {
                soon(40, &wanderer::go);
            }
        } else if (!std::holds_alternative<protocol::ping_message>(message)) {
            ++sums_.surprises;
        }
    }
    void on_refused(unsigned, clients::header_list const&) override { ++sums_.surprises; }
    void on_closed(std::uint16_t, boost::system::error_code) override {
        soon(200, &wanderer::connect);
    }

    void come() {
        held_ = identifier(agents_[pick(agents_.size())], std::to_string(++count_));
        client_->subscribe(held_);
        ++sums_.subscribes;
        if (pick(8) == 0) {
            go(); // not waiting for the confirmation
        }
    }

    void go() {
        switch (pick(4)) {
        case 0:
            ++sums_.closes;
            client_->close();
            break;
        case 1:
            ++sums_.kills;
            client_->kill();
            break;
        default:
            ++sums_.unsubscribes;
            client_->unsubscribe(std::exchange(held_, {}));
            soon(200, &wanderer::come);
        }
    }

    void soon(std::size_t within_ms, void (wanderer::*what)()) {
        if (leaving_) {
            return;
        }
        timer_.expires_after(milliseconds{pick(within_ms)});
        timer_.async_wait([this, what](boost::system::error_code ec) {
            if (!ec && !leaving_) {
                (this->*what)();
            }
        });
    }

    std::size_t pick(std::size_t n) {
        return std::uniform_int_distribution<std::size_t>{0, n - 1}(random_);
    }

    cable_loop& loop_;
    std::vector<clients::cable_client_options> doors_;
    std::vector<std::int64_t> agents_;
    std::minstd_rand random_;
    tally& sums_;
    boost::asio::steady_timer timer_;
    std::unique_ptr<clients::cable_client> client_;
    std::string held_;
    int count_ = 0;
    bool leaving_ = false;
};

// One statement, one snapshot.
auto const compare = R"(
    SELECT count(*) FILTER (WHERE flag <> held), count(*) FILTER (WHERE held)
    FROM (SELECT routing_active AS flag,
                 EXISTS (SELECT FROM agent_subscriptions s WHERE s.agent_id = a.id) AS held
          FROM agents a) t)";

auto const repeated = R"(
    SELECT count(*)
    FROM (SELECT active, lag(active) OVER (PARTITION BY agent_id ORDER BY id) AS before
          FROM routing_transitions) t
    WHERE active IS NOT DISTINCT FROM coalesce(before, false))";

} // namespace

TEST_CASE("in every snapshot a flag is on exactly when its agent has rows") {
    auto const seconds = scale("PRESENCED_E2E_SECONDS", 15);
    constexpr auto client_count = 24;
    world w;
    std::vector<std::unique_ptr<node>> nodes;
    std::vector<clients::cable_client_options> doors;
    for (auto const* name : {"one", "two", "three"}) {
        nodes.push_back(w.start_node({{"PRESENCED_NODE", name}, {"PRESENCED_LOG_LEVEL", "info"}}));
        doors.push_back(w.client_options(*nodes.back()));
    }
    auto const agents = w.add_agents(4);
    cable_loop loop;
    tally sums;
    std::vector<std::unique_ptr<wanderer>> clients;
    std::random_device seed;
    loop.run([&] {
        for (int i = 0; i < client_count; ++i) {
            clients.push_back(std::make_unique<wanderer>(loop, doors, agents, seed(), sums));
            clients.back()->connect();
        }
    });

    auto reader = w.another_session();
    long snapshots = 0;
    long differences = 0;
    std::map<long, long> by_active; // how often how many were on
    for (auto const start = steady::now(); since(start) < std::chrono::seconds{seconds};) {
        auto const row = reader.query(compare).front();
        ++snapshots;
        differences += std::stol(row[0]);
        ++by_active[std::stol(row[1])];
    }
    loop.run([&] {
        for (auto const& c : clients) {
            c->leave();
        }
    });
    CHECK(eventually([&] {
        auto gone = true;
        loop.run([&] {
            for (auto const& c : clients) {
                gone = gone && c->is_gone();
            }
        });
        return gone;
    }));
    CHECK(eventually([&] { return w.rows() == 0; }, 3s));
    CHECK(eventually(
        [&] {
            return reader.query(compare).front() == std::vector<std::string>{"0", "0"};
        },
        3s));
    auto const flips = w.sql().number("SELECT count(*) FROM routing_transitions");

    std::cout << "3 nodes, " << client_count << " clients, 4 agents, " << seconds
              << " s: " << snapshots << " snapshots, " << differences << " differences; "
              << sums.subscribes << " subscribes, " << sums.confirms << " confirmed, "
              << sums.unsubscribes << " unsubscribes, " << sums.closes << " closes, " << sums.kills
              << " kills, " << flips << " flips; snapshots by agents on:";
    for (auto const& [active, count] : by_active) {
        std::cout << ' ' << active << ':' << count;
    }
    std::cout << std::endl;

    CHECK(differences == 0);
    CHECK(sums.surprises == 0);
    CHECK(by_active.size() >= 3); // or nothing was happening
    CHECK(flips > 20);
    CHECK(w.sql().number(repeated) == 0);
    CHECK(w.sql().number("SELECT count(*) FROM routing_transitions "
                         "WHERE reason IN ('expired', 'reconciled')") == 0);
    for (auto const& n : nodes) {
        CHECK(n->metric("presenced_leases_lost_total") == 0);
        n->signal(SIGTERM);
        CHECK(n->wait() == 0);
    }
    loop.run([&] { clients.clear(); });
}
