// One client on /cable: Action Cable commands in, confirmations and pings out, and the evidence
// that somebody is there. Everything on its shard's thread; owned by its shard.
#pragma once

#include "presence/lease.hpp"
#include "protocol/message.hpp"
#include "server/admission.hpp"
#include "server/outbox.hpp"
#include "server/subscription.hpp"
#include "server/websocket.hpp"
#include "server/wheel.hpp"

#include <exception>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace presenced::server {

class shard;

// What is known of a client before its upgrade.
struct cable_facts {
    admission_ticket ticket;
    std::uint64_t number = 0; // names the connection in the log
    bool authorized = false;  // false: it is upgraded only to be told so
    db::token_id token = 0;
    presence::owner_id owner = 0;
    std::optional<wheel::clock::time_point> expires_at;
};

class cable_connection final : public websocket_owner, private wheel::entry {
public:
    cable_connection(shard& home, std::shared_ptr<websocket> socket, cable_facts facts);
    ~cable_connection();

    void begin();

    // The server ends it: tells the client why, gives up its leases at once, closes.
    // The first reason counts; later calls do nothing.
    void end(protocol::disconnect_reason why);
    bool is_ending() const { return ending_; }
    // What was to be done for it failed half-way: drops it, for it might never be looked at again.
    void fail(std::string_view what, std::exception const& why);

    // From the shard, when the database has answered.
    void on_confirmed(subscription& s);
    void on_rejected(subscription& s);
    void on_lease_lost(subscription& s);
    void on_no_room(subscription& s);
    // Renewals may have been lost: renew soon, at this connection's own moment.
    void on_database_back();
    // Its token was revoked, has expired or is gone.
    void on_token_ended();
    // A renewal was answered: the next one has its time.
    void on_renewed() { reschedule(); }

    db::token_id token() const { return facts_.token; }
    bool is_authorized() const { return facts_.authorized; }
    std::uint64_t key = 0; // in the shard's table

private:
    using time_point = wheel::clock::time_point;

    // websocket_owner
    void on_open() override;
    void on_text(std::string_view text) override;
    void on_binary() override;
    void on_control() override;
    void on_closing() override;
    void on_received(std::size_t bytes) override;
    void on_sent() override;
    void on_end(socket_end how) override;

    // wheel::entry
    void on_deadline(time_point now) override;

    void on_command(protocol::subscribe_command& c);
    void on_command(protocol::unsubscribe_command& c);
    void on_command(protocol::message_command& c);
    void bad_frame(std::string_view cause);
    void reject(std::string_view identifier, std::string_view cause);

    void do_what_is_due(time_point now);
    void ping_if_due(time_point now);
    void note_evidence();
    void renew_due(time_point now);
    bool holds_confirmed() const;
    void charge(wheel::clock::duration cost);
    void resume();
    void ask(subscription& s, std::optional<std::string> session_id);
    bool may_ask(time_point now) const;
    void reschedule();
    time_point next_deadline() const;
    subscription* find(std::string_view identifier) const;
    void forget(subscription& s);
    void give_up_all(presence::release_reason why, bool with_grace);

    bool send(frame const& f, bool with_ping = false);
    void send(std::string text) { send(std::make_shared<std::string const>(std::move(text))); }
    bool hand_over(frame const& f, bool with_ping);
    void flush();
    void say_goodbye();

    shard& shard_;
    std::shared_ptr<websocket> socket_;
    cable_facts facts_;
    outbox outbox_;
    std::vector<subscription*> subscriptions_; // owned by the shard, until given up
    time_point evidence_{};
    time_point next_ping_{};
    time_point next_native_ping_{};
    time_point close_by_{};
    time_point renew_from_{}; // not before: the database was away
    time_point resume_at_{time_point::max()};
    time_point read_until_{};  // its input is paid for until then; ahead of now: in debt
    time_point asked_until_{}; // the same for what it asks of the database
    frame in_flight_;          // with the socket; the outbox waits for it
    std::string const* unsent_ping_ = nullptr; // a ping that the kernel has not taken yet
    std::optional<protocol::disconnect_reason> reason_;
    bool ending_ = false; // its end is decided, its leases are given up
    bool open_ = false;
    bool overdue_ = false; // a renewal waits for evidence
    bool crowded_ = false; // not read until it has read
    bool counted_ = false;
};

} // namespace presenced::server
