// One thread of the server, with its own event loop, timer wheel, connections and leases.
// A connection lives and dies on one shard, so nothing in here needs a lock.
#pragma once

#include "server/cable/cable_host.hpp"
#include "server/cable/leases.hpp"
#include "server/cable/outbox.hpp"
#include "server/http/http_host.hpp"
#include "server/http/http_session.hpp"
#include "server/loop/net.hpp"
#include "server/loop/slot_table.hpp"
#include "server/loop/wheel.hpp"
#include "server/node/node.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/intrusive/list.hpp>

#include <atomic>
#include <cstddef>
#include <memory>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

namespace presenced::server {

class cable_connection;

class shard final : public db::mailbox, public cable_host, public http_host {
public:
    // `routes` outlive it.
    shard(node& shared, router const& routes);
    ~shard();

    // ---- Any thread -------------------------------------------------------------------------

    void start();
    // Ends the event loop and the thread. Only once drained, or when the rest may be lost.
    void stop();

    // A socket that was accepted into this shard's context().
    void adopt(tcp_socket socket);
    asio::io_context& context() { return context_; }
    // Connections of any kind: where the next one goes.
    std::size_t load() const { return load_.load(std::memory_order_relaxed); }

    // Ends up to `count` WebSocket connections that have not been told to go yet.
    void evict(protocol::disconnect_reason reason, std::size_t count);
    // Closes the older half of the HTTP connections that wait for their peer, to get descriptors
    // back: the younger half, and whoever has just come, may be about to ask for /healthz.
    void close_older_http();
    // WebSocket connections that still stand, and leases that the database has yet to release.
    std::size_t standing() const { return standing_.load(std::memory_order_relaxed); }
    std::size_t held_leases() const { return leases_.held(); }

    // db::mailbox, from database threads. Nothing is lost for want of memory: they wait for some.
    void deliver(std::vector<db::lease_answer> answers) override;
    void deliver(std::vector<db::token_answer> answers) override;
    void deliver(db::check_answer answer) override;
    void database_back() override;

    // ---- The shard's own thread ---------------------------------------------------------------

    node& shared() override { return shared_; }
    wheel& timers() override { return wheel_; }

    // http_host
    router const& routes() const override { return routes_; }
    void open_cable(std::shared_ptr<websocket> socket, client_info client) override;
    void keep_http(http_session& s) override;
    void forget_http(http_session& s) override;
    std::uint64_t authenticate(db::token_digest const& digest,
                               std::shared_ptr<token_asker> asker) override;
    void forget_lookup(std::uint64_t lookup) override;

    // Whether somebody is attached to the agent's stream (P7).
    bool has_listener(presence::agent_id agent) const { return leases_.has_listener(agent); }

private:
    // cable_host
    leases& lease_table() override { return leases_; }
    std::minstd_rand& random() override { return random_; }
    wheel::clock::time_point shared_moment(wheel::clock::time_point t) const override;
    frame const& ping_frame() override;
    void check_tokens_soon() override;
    void remove(cable_connection& c) override;

    // Posts a batch of answers to the shard's own thread.
    template <class Batch, class Take>
    void hand_over(Batch batch, Take take) noexcept;
    void check_tokens(wheel::clock::time_point now);
    void on_checked(db::check_answer& answer);
    db::store& store() { return *shared_.store.load(std::memory_order_relaxed); }

    node& shared_;
    router const& routes_;
    std::minstd_rand random_;
    // Oldest first; they keep themselves alive.
    boost::intrusive::list<
        http_session, boost::intrusive::member_hook<
                          http_session, boost::intrusive::list_member_hook<>, &http_session::place>>
        https_;
    std::uint64_t last_lookup_ = 0;
    bool checking_tokens_ = false;
    wheel::clock::time_point next_owner_check_{};
    frame ping_;
    std::int64_t ping_second_ = 0;
    std::atomic<std::size_t> load_{0};
    std::atomic<std::size_t> standing_{0};

    // Handlers that never ran are destroyed with the context, and use what stands above; sockets
    // and timers need the context, and stand below.
    asio::io_context context_{1};
    asio::executor_work_guard<executor> work_;
    wheel wheel_;
    leases leases_{shared_, wheel_, *this};
    std::unordered_map<std::uint64_t, std::shared_ptr<token_asker>> lookups_;
    slot_table<cable_connection> cables_;
    chore<shard> token_check_{*this, &shard::check_tokens};
    std::thread thread_;
};

} // namespace presenced::server
