// What a connection does when the store has no room, which a real PostgreSQL says only under 65,536
// waiting subscribes, and when there is no memory.
#include "protocol/codec.hpp"
#include "server/app/shard.hpp"
#include "server/cable/cable_connection.hpp"
#include "server/http/router.hpp"
#include "tests/support/catch.hpp"

#include <boost/asio/post.hpp>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace presenced;
using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

// Has room for an agent from its `room_at[agent]`th try on; for others at once.
class cramped_store final : public db::store {
public:
    std::map<presence::agent_id, int> room_at;
    std::size_t answers_at_once = 1; // to acquires; as they come out of one batch
    presence::agent_id refused = 0;
    std::atomic<int> releases_that_fail{0}; // for want of memory, before one gets through
    presence::agent_id too_large = 0;       // no memory for an acquire of this agent
    std::function<void(presence::agent_id)> on_acquire = [](presence::agent_id) {
    };

    void acquire(db::acquire_request request) override {
        on_acquire(request.agent);
        if (request.agent == too_large) {
            throw std::bad_alloc{};
        }
        auto const it = room_at.find(request.agent);
        auto const room = it == room_at.end() || --it->second <= 0;
        auto const answer = room ? db::lease_outcome::acquired : db::lease_outcome::unavailable;
        answers_.push_back(
            {request.key, request.agent == refused ? db::lease_outcome::refused : answer});
        if (answers_.size() == answers_at_once) {
            request.box->deliver(std::exchange(answers_, {}));
        }
    }
    void abandon(db::agent_id, db::lease_token const&) override {}
    void release(db::release_request request) override {
        if (releases_that_fail-- > 0) {
            throw std::bad_alloc{};
        }
        request.box->deliver(
            std::vector<db::lease_answer>{{request.key, db::lease_outcome::released}});
    }
    void renew(db::renew_request) override {}
    void forget_renewal(db::agent_id, db::lease_token const&) override {}
    void authenticate(db::authenticate_request) override {}
    void check(db::check_request) override {}
    void subscribe_to_outages(db::mailbox&) override {}
    db::store_health health() const override { return {}; }
    std::size_t stop(std::chrono::steady_clock::time_point) override { return 0; }

private:
    std::vector<db::lease_answer> answers_;
};

// A client without a socket. Its members are used on the shard's thread, but for await().
class client final : public websocket {
public:
    explicit client(shard& home)
        : home_{home} {}

    std::atomic<bool> has_memory{true}; // for what is sent to it

    void start(websocket_owner& owner) override {
        owner_ = &owner;
        post([](websocket_owner& o) { o.on_open(); });
    }
    bool send(frame const& f, bool with_ping) override {
        if (!has_memory) {
            throw std::bad_alloc{};
        }
        if (with_ping) {
            answer_ping("PING+");
        }
        mark(*f);
        is_prompt_ = !is_prompt_;
        if (!is_prompt_) {
            post([](websocket_owner& o) { o.on_sent(); });
        }
        return is_prompt_;
    }
    void ping() override { answer_ping("PING "); }
    void pause() override { mark("PAUSED "); }
    void resume() override { mark("RESUMED "); }
    void close() override {
        asio::post(home_.context(), [this] { end(socket_end::closed); });
    }
    void drop() override {
        asio::post(home_.context(), [this] { end(socket_end::lost); });
    }
    void abandon() override { owner_ = nullptr; }

    // From any thread.
    void says(protocol::command const& command) {
        post([text = protocol::encode_command(command)](websocket_owner& o) { o.on_text(text); });
    }
    // So much of one kind at once, until reading pauses; hears PAUSED then, and later RESUMED.
    void floods(std::function<void(websocket_owner&)> one) {
        post([this, one = std::move(one)](websocket_owner& o) {
            for (int i = 0; i < 1'000'000 && heard().find("PAUSED") == std::string::npos; ++i) {
                one(o);
                ++taken_;
            }
        });
    }
    // How many of them there were.
    int taken() const { return taken_; }

    // Whether it hears that within `limit`.
    bool hears(std::string const& text, std::chrono::milliseconds limit = 20s) {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, limit, [&] { return heard_.find(text) != heard_.npos; });
    }

    std::string heard() {
        std::lock_guard const lock{mutex_};
        return heard_;
    }

    // Whether its owner has heard of its end within `limit`.
    bool has_ended(std::chrono::milliseconds limit = 20s) {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, limit, [&] { return has_ended_; });
    }

private:
    void mark(std::string const& text) {
        {
            std::lock_guard const lock{mutex_};
            heard_ += text;
        }
        changed_.notify_all();
    }
    void answer_ping(char const* text) {
        if (!has_memory) {
            throw std::bad_alloc{};
        }
        mark(text);
        post([](websocket_owner& o) {
            o.on_received(2);
            o.on_control();
        });
    }
    template <class F>
    void post(F f) {
        asio::post(home_.context(), [this, f = std::move(f)] {
            if (owner_ != nullptr) {
                f(*owner_);
            }
        });
    }
    void end(socket_end how) {
        if (auto* owner = std::exchange(owner_, nullptr)) {
            owner->on_end(how);
            {
                std::lock_guard const lock{mutex_};
                has_ended_ = true;
            }
            changed_.notify_all();
        }
    }

    shard& home_;
    websocket_owner* owner_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string heard_;
    bool has_ended_ = false;
    bool is_prompt_ = false; // about the last message
    std::atomic<int> taken_{0};
};

// Looks again and again until it is true, for 20 s at most.
template <class Holds>
bool eventually(Holds holds) {
    auto const deadline = std::chrono::steady_clock::now() + 20s;
    while (!holds() && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(1ms);
    }
    return holds();
}

std::string on(presence::agent_id agent) {
    return protocol::encode_identifier("AgentChannel", agent);
}

std::shared_ptr<client> let_in(shard& home, identity who = {}) {
    auto c = std::make_shared<client>(home);
    asio::post(home.context(), [&home, c, who = std::move(who)] {
        client_info facts;
        facts.who = who;
        home.open_cable(c, std::move(facts));
    });
    return c;
}

// A node of one shard. A test sets what it needs otherwise, then starts it.
struct small_node {
    config settings;
    metrics figures{"test", "test"};
    node shared{settings, figures, 10};
    router routes;
    cramped_store store;
    std::optional<shard> home;

    shard& start() {
        shared.store.store(&store);
        shared.phase.store(node_phase::serving);
        home.emplace(shared, routes);
        home->start();
        return *home;
    }
};

} // namespace

TEST_CASE(
    "an agent that the token is not narrowed to is rejected like one of another owner, and the "
    "store is not asked") {
    small_node n;
    n.store.refused = 8;
    std::vector<presence::agent_id> asked; // on the shard's thread
    n.store.on_acquire = [&asked](presence::agent_id agent) {
        asked.push_back(agent);
    };
    auto& home = n.start();
    identity who;
    who.agents = std::make_shared<std::vector<presence::agent_id> const>(
        std::vector<presence::agent_id>{7, 8});
    auto const c = let_in(home, who);
    REQUIRE(c->hears("welcome"));
    c->says(protocol::subscribe_command{on(9)});
    CHECK(c->hears(protocol::encode_reject(on(9))));
    c->says(protocol::subscribe_command{on(8)});
    CHECK(c->hears(protocol::encode_reject(on(8))));
    c->says(protocol::subscribe_command{on(7)});
    CHECK(c->hears(protocol::encode_confirm(on(7))));
    CHECK(n.figures.exposition({}, true).find("presenced_rejections_total{cause=\"refused\"} 2") !=
          std::string::npos);
    n.home.reset();
    CHECK(asked == std::vector<presence::agent_id>{8, 7});
}

TEST_CASE("a store that is full is asked again, for 8 seconds or while another lease is held") {
    small_node n;
    n.store.room_at = {{1, 3}, {2, 1'000}};
    auto& home = n.start();
    std::vector<std::shared_ptr<client>> clients;
    for (int i = 0; i < 3; ++i) {
        clients.push_back(let_in(home));
        REQUIRE(clients.back()->hears("welcome"));
    }
    auto& patient = *clients[0];
    auto& hopeless = *clients[1];
    auto& holding = *clients[2];
    std::string const confirmed = "confirm_subscription";
    std::string const unavailable = R"("reason":"unavailable","reconnect":true)";

    auto const start = std::chrono::steady_clock::now();
    patient.says(protocol::subscribe_command{on(1)});
    hopeless.says(protocol::subscribe_command{on(2)});
    holding.says(protocol::subscribe_command{on(3)});
    REQUIRE(holding.hears(confirmed));
    holding.says(protocol::subscribe_command{on(2)});

    CHECK(patient.hears(confirmed));
    CHECK(std::chrono::steady_clock::now() - start >= 1s); // two pauses of half a second and more
    CHECK(hopeless.hears(unavailable));
    CHECK(std::chrono::steady_clock::now() - start >= 8s);
    CHECK_FALSE(holding.hears(unavailable, 1s));
    holding.says(protocol::unsubscribe_command{on(3)});
    CHECK(holding.hears(unavailable));
    home.stop();
}

TEST_CASE("a connection whose deadline fails is dropped, and what it holds is released") {
    small_node n;
    n.shared.timings.peer_timeout = 3s; // a WebSocket ping within 1 s
    auto& home = n.start();
    auto const unlucky = let_in(home);
    auto const neighbour = let_in(home);
    for (auto const& c : {unlucky, neighbour}) {
        REQUIRE(c->hears("welcome"));
        c->says(protocol::subscribe_command{on(1)});
        REQUIRE(c->hears("confirm_subscription"));
    }
    REQUIRE(home.held_leases() == 2);

    unlucky->has_memory = false;
    REQUIRE(unlucky->has_ended());
    // From a socket that is lost: nobody was told.
    CHECK_FALSE(unlucky->hears("disconnect", 0ms));
    auto const deadline = std::chrono::steady_clock::now() + 20s;
    while (home.held_leases() != 1 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(1ms); // for the answer to the release
    }
    CHECK(home.held_leases() == 1);
    CHECK(home.standing() == 1);
    CHECK_FALSE(neighbour->hears("disconnect", 0ms));
    home.stop();
}

TEST_CASE("an answer that cannot be passed on costs its connection, and no other answer") {
    small_node n;
    n.store.answers_at_once = 2;
    n.store.refused = GENERATE(0, 1); // nobody's, or the unlucky one's agent
    auto& home = n.start();
    auto const unlucky = let_in(home);
    auto const neighbour = let_in(home);
    REQUIRE(unlucky->hears("welcome"));
    REQUIRE(neighbour->hears("welcome"));
    unlucky->has_memory = false;
    unlucky->says(protocol::subscribe_command{on(1)});
    neighbour->says(protocol::subscribe_command{on(2)});
    CHECK(neighbour->hears("confirm_subscription"));
    CHECK(unlucky->has_ended());
    // Nothing is left of what it held.
    auto const deadline = std::chrono::steady_clock::now() + 20s;
    while (home.held_leases() != 1 && std::chrono::steady_clock::now() < deadline) {
        std::this_thread::sleep_for(1ms); // for the answer to the release
    }
    CHECK(home.held_leases() == 1);
    home.stop();
}

TEST_CASE("a subscribe that cannot be handed to the store costs its connection, and no count") {
    small_node n;
    n.store.too_large = 2;
    auto& home = n.start();
    auto const unlucky = let_in(home);
    auto const neighbour = let_in(home);
    for (auto const& c : {unlucky, neighbour}) {
        REQUIRE(c->hears("welcome"));
        c->says(protocol::subscribe_command{on(1)});
        REQUIRE(c->hears("confirm_subscription"));
    }
    unlucky->says(protocol::subscribe_command{on(2)});
    CHECK(unlucky->has_ended());
    CHECK(eventually([&] { return home.held_leases() == 1; }));
    CHECK(home.standing() == 1);
    CHECK(home.load() == 1);
    auto const shown = n.figures.exposition({}, true);
    for (auto const* line :
         {"{state=\"pending\"} 0", "{state=\"confirmed\"} 1", "{state=\"releasing\"} 0"}) {
        CAPTURE(line);
        CHECK(shown.find("presenced_subscriptions" + std::string{line} + "\n") != shown.npos);
    }
    home.stop();
}

TEST_CASE("a release that cannot be handed to the store is handed to it later") {
    small_node n;
    n.store.releases_that_fail = 2;
    auto& home = n.start();
    auto const c = let_in(home);
    REQUIRE(c->hears("welcome"));
    for (auto const agent : {1, 2, 3}) {
        c->says(protocol::subscribe_command{on(agent)});
    }
    REQUIRE(eventually([&] { return home.held_leases() == 3; }));
    c->drop();
    CHECK(c->has_ended());
    CHECK(eventually([&] { return home.held_leases() == 0; }));
    CHECK(home.standing() == 0);
    home.stop();
}

TEST_CASE("a WebSocket ping leaves with a JSON ping, where one is sent before it is due") {
    small_node n;
    n.shared.timings.ping = 60ms;
    n.shared.timings.peer_timeout = 600ms; // a WebSocket ping every 200 ms
    auto& home = n.start();
    auto const c = let_in(home);
    std::string const message = R"({"type":"ping")";
    REQUIRE(c->hears(message)); // its phase is chance, and the first WebSocket ping may come before
    auto const begin = c->heard().find(message) + 1;
    std::size_t pings = 0;
    for (auto at = begin; pings < 5; ++pings) {
        auto const deadline = std::chrono::steady_clock::now() + 20s;
        while (c->heard().find("PING", at) == std::string::npos &&
               std::chrono::steady_clock::now() < deadline) {
            std::this_thread::sleep_for(1ms);
        }
        at = c->heard().find("PING", at) + 1;
        REQUIRE(at != 0);
    }
    REQUIRE(c->hears("PING+" + message));
    home.stop();
    auto const heard = c->heard().substr(begin);
    CAPTURE(heard);
    CHECK(heard.find("PING ") == std::string::npos);
    std::size_t together = 0;
    for (auto at = heard.find("PING+"); at != std::string::npos; at = heard.find("PING+", at + 1)) {
        together += heard.compare(at + 5, message.size(), message) == 0 ? 1U : 0U;
    }
    CHECK(together >= pings);
}

TEST_CASE("who sends more than his share is read more slowly, and then on") {
    small_node n;
    auto& home = n.start();
    auto const c = let_in(home);
    REQUIRE(c->hears("welcome"));
    // A tenth of a second's worth at once, of 10,000 frames or 2 MiB a second. Time that passes
    // meanwhile allows for more.
    int at_least = 1'000;
    SECTION("frames") {
        c->floods([](websocket_owner& o) { o.on_control(); });
    }
    SECTION("bytes") {
        at_least = 3; // 205 KiB
        c->floods([](websocket_owner& o) { o.on_received(64 * 1024); });
    }
    REQUIRE(c->hears("PAUSED"));
    CHECK(c->taken() >= at_least);
    CHECK(c->hears("RESUMED"));
    auto const shown = n.figures.exposition({}, true);
    CHECK(shown.find(R"(presenced_limits_hit_total{limit="input"} 1)") != shown.npos);
    home.stop();
}

TEST_CASE("a session is at its agent's stream before its row is asked for, until it leaves") {
    small_node n;
    auto& home = n.start();
    std::vector<bool> listened; // when a flag could have flipped at the earliest
    n.store.on_acquire = [&](presence::agent_id agent) {
        listened.push_back(home.has_listener(agent));
    };
    auto const listens = [&](presence::agent_id agent) {
        std::promise<bool> answer;
        asio::post(home.context(), [&] { answer.set_value(home.has_listener(agent)); });
        return answer.get_future().get();
    };
    std::vector<std::shared_ptr<client>> clients;
    for (auto i = 0; i < 2; ++i) {
        clients.push_back(let_in(home));
        REQUIRE(clients.back()->hears("welcome"));
        clients.back()->says(protocol::subscribe_command{on(1)});
        REQUIRE(clients.back()->hears("confirm_subscription"));
    }
    CHECK(listened == std::vector<bool>{true, true});
    CHECK(listens(1));
    CHECK_FALSE(listens(2));
    clients[0]->says(protocol::unsubscribe_command{on(1)});
    CHECK(listens(1)); // the other one
    clients[1]->says(protocol::unsubscribe_command{on(1)});
    CHECK_FALSE(listens(1));
    home.stop();
}
