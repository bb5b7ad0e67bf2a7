// What a connection does with a store that has no room: the one answer that a real PostgreSQL gives
// only under 65,536 waiting subscribes.
#include "protocol/codec.hpp"
#include "server/cable_connection.hpp"
#include "server/shard.hpp"
#include "tests/support/catch.hpp"

#include <boost/asio/post.hpp>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
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

    void acquire(db::acquire_request request) override {
        auto const it = room_at.find(request.agent);
        auto const room = it == room_at.end() || --it->second <= 0;
        request.box->deliver(std::vector<db::lease_answer>{
            {request.key, room ? db::lease_outcome::acquired : db::lease_outcome::unavailable}});
    }
    void abandon(db::agent_id, db::lease_token const&) override {}
    void release(db::release_request request) override {
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
};

// A client without a socket. Its members are used on the shard's thread, but for await().
class client final : public websocket {
public:
    explicit client(shard& home)
        : home_{home} {}

    void start(websocket_owner& owner) override {
        owner_ = &owner;
        post([](websocket_owner& o) { o.on_open(); });
    }
    void send(frame f) override {
        {
            std::lock_guard const lock{mutex_};
            heard_ += *f;
        }
        changed_.notify_all();
        post([](websocket_owner& o) { o.on_sent(); });
    }
    void ping() override {
        post([](websocket_owner& o) { o.on_control(); });
    }
    void pause() override {}
    void resume() override {}
    void close() override {
        asio::post(home_.context(), [this] { end(socket_end::closed); });
    }
    void drop() override {
        asio::post(home_.context(), [this] { end(socket_end::lost); });
    }

    // From any thread.
    void says(protocol::command const& command) {
        post([text = protocol::encode_command(command)](websocket_owner& o) { o.on_text(text); });
    }
    // Whether it hears that within `limit`.
    bool hears(std::string const& text, std::chrono::milliseconds limit = 20s) {
        std::unique_lock lock{mutex_};
        return changed_.wait_for(lock, limit, [&] { return heard_.find(text) != heard_.npos; });
    }

private:
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
        }
    }

    shard& home_;
    websocket_owner* owner_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string heard_;
};

std::string on(presence::agent_id agent) {
    return protocol::encode_identifier("AgentChannel", agent);
}

} // namespace

TEST_CASE("a store that is full is asked again, for 8 seconds or while another lease is held") {
    config settings;
    metrics figures{"test", "test"};
    node shared{settings, figures, 10};
    cramped_store store;
    store.room_at = {{1, 3}, {2, 1'000}};
    shared.store.store(&store);
    shared.phase.store(node_phase::serving);
    shard home{shared};
    home.start();
    std::vector<std::shared_ptr<client>> clients;
    for (int i = 0; i < 3; ++i) {
        auto const c = std::make_shared<client>(home);
        clients.push_back(c);
        asio::post(home.context(), [&home, c] {
            cable_facts facts;
            facts.authorized = true;
            home.open_cable(c, std::move(facts));
        });
        REQUIRE(c->hears("welcome"));
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
