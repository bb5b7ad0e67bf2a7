// One thread of the server, with its own event loop, timer wheel, hub, connections and leases.
// A connection lives and dies on one shard, so nothing in here needs a lock.
#pragma once

#include "presence/lease.hpp"
#include "server/hub.hpp"
#include "server/net.hpp"
#include "server/node.hpp"
#include "server/outbox.hpp"
#include "server/slot_table.hpp"
#include "server/subscription.hpp"
#include "server/wheel.hpp"

#include <boost/asio/executor_work_guard.hpp>

#include <atomic>
#include <cstddef>
#include <deque>
#include <list>
#include <memory>
#include <random>
#include <thread>
#include <unordered_map>
#include <vector>

namespace presenced::server {

class cable_connection;
class http_session;
struct cable_facts;
class websocket;

class shard final : public db::mailbox {
public:
    explicit shard(node& shared);
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
    std::size_t held_leases() const { return held_.load(std::memory_order_relaxed); }

    // db::mailbox, from database threads.
    void deliver(std::vector<db::lease_answer> answers) override;
    void deliver(std::vector<db::token_answer> answers) override;
    void deliver_ended(std::vector<db::token_id> ended) override;
    void database_back() override;

    // ---- The shard's own thread ---------------------------------------------------------------

    node& shared() { return shared_; }
    wheel& timers() { return wheel_; }
    // For what a connection does again and again: the first moment from `t` on that it may share
    // with others, so that a shard with few connections sleeps in between. A twelfth of the ping
    // interval later at most, and no more than a quarter of a second.
    wheel::clock::time_point shared_moment(wheel::clock::time_point t) const;
    std::minstd_rand& random() { return random_; }
    // `{"type":"ping"}` of this second, encoded once for all.
    frame const& ping_frame();
    // Asks the database about all tokens in the next round of the wheel: one may have run out.
    void check_tokens_soon();

    // A request asked for an upgrade and may have it.
    void open_cable(std::shared_ptr<websocket> socket, cable_facts facts);
    // Destroys it.
    void remove(cable_connection& c);
    void keep_http(http_session& s);
    void forget_http(http_session& s);

    // Asks for the token's owner; on_token() gets the answer, unless it is forgotten before.
    std::uint64_t authenticate(db::token_digest const& digest, std::shared_ptr<http_session> asker);
    void forget_lookup(std::uint64_t lookup);

    // Starts a lease: it is attached to the agent's stream before it is asked for (P7).
    subscription& subscribe(cable_connection& owner, presence::agent_id agent,
                            std::string identifier);
    // Asks the store for one that is unsent; again, when the store had no room for it.
    void ask(subscription& s, presence::owner_id user, std::optional<std::string> session_id);
    // The connection does not want it any more. Its owner has forgotten it when this returns.
    void give_up(subscription& s, presence::release_reason why);
    // The same, but the lease stays as it is for disconnect_grace.
    void linger(subscription& s);
    // Whether somebody is attached to the agent's stream (P7).
    bool has_listener(presence::agent_id agent) const { return hub_.has_listener(agent); }
    // Renews what is due; false when a due renewal has to wait for evidence.
    bool renew(subscription& s, wheel::clock::time_point now, wheel::clock::time_point evidence);

private:
    // What the shard itself does at its times.
    class chore final : public wheel::entry {
    public:
        using job = void (shard::*)(wheel::clock::time_point now);
        chore(shard& home, job what)
            : shard_{home}
            , job_{what} {}

    private:
        void on_deadline(wheel::clock::time_point now) override { (shard_.*job_)(now); }
        shard& shard_;
        job job_;
    };

    void on_answer(subscription& s, db::lease_outcome outcome);
    // Feeds an event to the lease, keeps the figures, and carries out what it asks for.
    template <class Event>
    void drive(subscription& s, Event event);
    void perform(subscription& s, presence::action what);
    void bury_if_over(subscription& s);
    void end_lingering(wheel::clock::time_point now);
    void check_tokens(wheel::clock::time_point now);
    db::store& store() { return *shared_.store.load(std::memory_order_relaxed); }

    node& shared_;
    std::minstd_rand random_;
    hub hub_;
    slot_table<subscription> leases_;
    std::list<http_session*> https_; // oldest first; they keep themselves alive
    std::uint64_t last_lookup_ = 0;
    struct lingering {
        wheel::clock::time_point until;
        std::uint64_t key;
    };
    std::deque<lingering> lingering_; // in order of time: the grace is the same for all
    bool checking_tokens_ = false;
    frame ping_;
    std::int64_t ping_second_ = 0;
    std::atomic<std::size_t> load_{0};
    std::atomic<std::size_t> standing_{0};
    std::atomic<std::size_t> held_{0};

    // Handlers that never ran are destroyed with the context, and use what stands above; sockets
    // and timers need the context, and stand below.
    asio::io_context context_{1};
    asio::executor_work_guard<executor> work_;
    wheel wheel_;
    std::unordered_map<std::uint64_t, std::shared_ptr<http_session>> lookups_;
    slot_table<cable_connection> cables_;
    chore grace_{*this, &shard::end_lingering};
    chore token_check_{*this, &shard::check_tokens};
    std::thread thread_;
};

} // namespace presenced::server
