// One client on /cable: Action Cable commands in, confirmations and pings out, and the evidence
// that somebody is there. Everything on its shard's thread; owned by its shard.
#pragma once

#include "protocol/message.hpp"
#include "server/auth/client_info.hpp"
#include "server/cable/cable_host.hpp"
#include "server/cable/cable_output.hpp"
#include "server/cable/deadlines.hpp"
#include "server/cable/subscription_set.hpp"
#include "server/cable/websocket.hpp"
#include "server/loop/wheel.hpp"

#include <exception>
#include <memory>
#include <optional>
#include <string_view>

namespace presenced::server {

class cable_connection final : public websocket_owner, private lease_holder, private wheel::entry {
public:
    cable_connection(cable_host& home, std::shared_ptr<websocket> socket, client_info client);
    ~cable_connection();

    void begin();

    // The server ends it: tells the client why, gives up its leases at once, closes.
    // The first reason counts; later calls do nothing.
    void end(protocol::disconnect_reason why);
    bool is_ending() const { return ending_; }
    // What was to be done for it failed half-way: drops it, for it might never be looked at again.
    void fail(std::string_view what, std::exception const& why) override;

    // Renewals may have been lost: renew soon, at this connection's own moment.
    void on_database_back();
    // Its token was revoked, has expired or is gone, or is not worth the same any more.
    void on_token_ended();

    // Null: nobody, it is about to be told so.
    identity const* who() const { return client_.who ? &*client_.who : nullptr; }
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

    // lease_holder
    void on_moved(subscription& s) noexcept override { subscriptions_.file(s); }
    void on_confirmed(subscription& s) override;
    void on_rejected(subscription& s) override;
    void on_lease_lost(subscription& s) override;
    void on_owner_changed(subscription& s) override;
    void on_no_room(subscription& s) override;
    void on_renewed() override { reschedule(); }

    // wheel::entry
    void on_deadline(time_point now) override;

    void on_command(protocol::subscribe_command& c);
    void on_command(protocol::unsubscribe_command& c);
    void on_command(protocol::message_command& c);
    void bad_frame(std::string_view cause);
    void reject(std::string_view identifier, std::string_view cause);

    void do_what_is_due();
    void perform(deadlines::step what, time_point now);
    void end_silent(time_point now);
    void renew_due(time_point now);
    void reschedule();
    void pause_if(bool in_debt);
    void resume();
    void ask(subscription& s, std::optional<std::string> session_id);
    void give_up_all(bool with_grace);
    template <class Work>
    void guarded(std::string_view what, Work work);

    void send(frame const& f);
    void send(std::string text) { send(std::make_shared<std::string const>(std::move(text))); }
    void on_output(cable_output::outcome what);

    node& shared() const { return home_.shared(); }

    cable_host& home_;
    client_info client_;
    cable_output output_;
    subscription_set subscriptions_;
    deadlines deadlines_;
    std::optional<protocol::disconnect_reason> reason_;
    bool ending_ = false; // its end is decided, its leases are given up
    bool open_ = false;
    bool crowded_ = false; // not read until it has read
    bool counted_ = false;
};

} // namespace presenced::server
