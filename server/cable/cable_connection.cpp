#include "server/cable/cable_connection.hpp"

#include "protocol/codec.hpp"
#include "server/cable/cable_frames.hpp"
#include "server/node/log.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <random>
#include <utility>
#include <variant>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// How long a full store is left alone before the same acquire is asked for again; half of it is
// chance, so that those who wait do not come back together.
constexpr std::chrono::milliseconds store_full_pause = 1s;

// The cause of a rejection: the agent is none that this client may subscribe to. Whether there is
// such an agent, nobody is told.
constexpr std::string_view refused = "refused";

// Of each kind that can come for thousands of connections at once.
constexpr unsigned lines_a_second = 100;

// A time between the two, by chance.
std::chrono::milliseconds pick(std::minstd_rand& random, std::chrono::milliseconds least,
                               std::chrono::milliseconds most) {
    std::uniform_int_distribution<std::int64_t> between{least.count(), most.count()};
    return std::chrono::milliseconds{between(random)};
}

} // namespace

cable_connection::cable_connection(cable_host& home, std::shared_ptr<websocket> socket,
                                   client_info client)
    : home_{home}
    , client_{std::move(client)}
    , output_{std::move(socket)}
    , deadlines_{home.shared().timings} {}

cable_connection::~cable_connection() {
    output_.socket().abandon(); // what waits in it would keep it alive
}

void cable_connection::begin() {
    auto const at = home_.timers().now();
    deadlines_.begin(at);
    home_.timers().schedule(*this, deadlines_.next_wake_up(at, {}).exact);
    output_.socket().start(*this);
}

// What fails for want of memory, say, must not leave a connection that nobody reads any more.
template <class Work>
void cable_connection::guarded(std::string_view what, Work work) {
    try {
        work();
    } catch (std::exception const& failure) {
        fail(what, failure);
    }
}

void cable_connection::fail(std::string_view what, std::exception const& why) {
    output_.socket().drop();
    spdlog::error("cable {} failed, dropped conn={} address={} why=\"{}\"", what, client_.number,
                  client_.ticket.address(), why.what());
}

// ---- The socket's events --------------------------------------------------------------------

void cable_connection::on_open() {
    open_ = true;
    counted_ = true;
    if (!ending_) {
        auto const& timings = shared().timings;
        // Each connection pings at its own moment, or all of them would at once.
        deadlines_.open(home_.timers().now(), pick(home_.random(), 0ms, timings.ping),
                        pick(home_.random(), 0ms, timings.native_ping()));
        deadlines_.expect_token_end(client_.who ? client_.who->expires_at
                                                : presence::time_point::max());
    }
    shared().figures.connection_opened();
    guarded("opening", [this] {
        if (ending_) {
            // Its end was decided while the handshake was under way.
            if (reason_) {
                output_.say_last(goodbye(*reason_));
            }
            return;
        }
        if (!client_.who) {
            end(protocol::disconnect_reason::unauthorized);
            return;
        }
        spdlog::debug("cable opened conn={} address={} owner={}", client_.number,
                      client_.ticket.address(), client_.who->owner);
        send(welcome());
        // A node that began to drain while this client was on its way in.
        if (shared().phase.load() == node_phase::draining) {
            end(protocol::disconnect_reason::server_restart);
            return;
        }
        reschedule();
    });
}

void cable_connection::on_text(std::string_view text) {
    if (ending_) {
        return;
    }
    guarded("command", [this, text] {
        pause_if(deadlines_.charge_frame(wheel::clock::now()));
        auto decoded = protocol::decode_frame(text);
        if (!decoded) {
            bad_frame(protocol::to_string(decoded.error()));
            return;
        }
        std::visit([this](auto& c) { on_command(c); }, *decoded);
    });
}

void cable_connection::on_binary() {
    if (!ending_) {
        pause_if(deadlines_.charge_frame(wheel::clock::now()));
        bad_frame(protocol::to_string(protocol::frame_error::binary));
    }
}

void cable_connection::on_control() {
    if (!ending_) {
        pause_if(deadlines_.charge_frame(wheel::clock::now()));
    }
}

void cable_connection::on_received(std::size_t bytes) {
    if (bytes == 0) {
        return; // the end
    }
    // Of a frame, a pong, or a long message on a thin line, which no pong can overtake.
    auto const at = home_.timers().now();
    deadlines_.hear(at);
    if (ending_) {
        return;
    }
    if (subscriptions_.any_put_off()) {
        guarded("renewal", [this, now = at.now] {
            subscriptions_.take_up();
            renew_due(now);
            reschedule();
        });
    }
    pause_if(deadlines_.charge_bytes(bytes, at.now));
}

void cable_connection::on_closing() {
    // The release starts now and not after the handshake, which is the peer's to finish.
    if (!std::exchange(ending_, true)) {
        deadlines_.close(wheel::clock::now());
        reschedule();
        give_up_all(false);
    }
}

void cable_connection::on_sent() {
    guarded("sending", [this] {
        output_.on_sent();
        if (crowded_ && !output_.is_crowded()) {
            crowded_ = false;
            resume();
        }
    });
}

void cable_connection::on_end(socket_end how) {
    // Nothing is left of an end that was decided before, unless it failed half-way.
    auto const was_ending = std::exchange(ending_, true);
    give_up_all(how == socket_end::lost && !was_ending);
    if (counted_) {
        auto& figures = shared().figures;
        if (reason_) {
            figures.connection_ended(*reason_);
        } else {
            figures.connection_ended(how == socket_end::closed ? quiet_end::client_closed
                                     : how == socket_end::lost ? quiet_end::lost
                                                               : quiet_end::protocol_error);
        }
        spdlog::debug("cable closed conn={} reason={}", client_.number,
                      reason_ ? protocol::to_string(*reason_) : std::string_view{"client"});
    }
    home_.remove(*this); // destroys this object
}

// ---- Commands -------------------------------------------------------------------------------

void cable_connection::on_command(protocol::subscribe_command& c) {
    // Clients send it again every 500 ms until it is confirmed; one row, one confirmation.
    if (subscriptions_.find(c.identifier) != nullptr) {
        return;
    }
    auto const& settings = shared().settings;
    auto params = protocol::parse_identifier(c.identifier, settings.channels);
    if (!params) {
        reject(c.identifier, protocol::to_string(params.error()));
        return;
    }
    if (subscriptions_.size() >= settings.max_subscriptions) {
        reject(c.identifier, protocol::to_string(protocol::reject_cause::too_many_subscriptions));
        return;
    }
    if (!client_.who->includes(params->agent_id)) {
        reject(c.identifier, refused);
        return;
    }
    auto& s = home_.lease_table().add(*this, params->agent_id, std::move(c.identifier));
    try {
        subscriptions_.add(s);
    } catch (std::exception const&) {
        home_.lease_table().give_up(s, presence::release_reason::disconnected);
        throw;
    }
    if (deadlines_.may_ask(wheel::clock::now())) {
        ask(s, std::move(params->session_id));
    } else {
        shared().figures.limited("subscribes");
    }
    reschedule();
}

void cable_connection::on_command(protocol::unsubscribe_command& c) {
    if (auto* s = subscriptions_.find(c.identifier)) {
        spdlog::debug("cable unsubscribed conn={} agent={}", client_.number, s->agent);
        subscriptions_.remove(*s);
        home_.lease_table().give_up(*s, presence::release_reason::unsubscribed);
        reschedule(); // what is left may be a subscribe that has waited too long
    }
}

void cable_connection::on_command(protocol::message_command& c) {
    // The channel has no actions.
    bad_frame(subscriptions_.find(c.identifier) == nullptr ? "unknown_identifier"
                                                           : "unknown_action");
}

void cable_connection::bad_frame(std::string_view cause) {
    shared().figures.bad_frame(cause);
    static thread_local line_limit limit{1};
    if (auto const more = limit.admit()) {
        spdlog::warn("cable bad frame ignored conn={} address={} cause={}{}", client_.number,
                     client_.ticket.address(), cause, *more);
    }
}

void cable_connection::reject(std::string_view identifier, std::string_view cause) {
    shared().figures.rejected(cause);
    spdlog::debug("cable rejected conn={} cause={}", client_.number, cause);
    send(protocol::encode_reject(identifier));
}

// ---- The database's answers -------------------------------------------------------------------

void cable_connection::on_confirmed(subscription& s) {
    spdlog::debug("cable subscribed conn={} agent={}", client_.number, s.agent);
    shared().figures.subscribed(wheel::clock::now() - s.lease.asked_at());
    send(protocol::encode_confirm(s.identifier));
    reschedule();
}

void cable_connection::on_rejected(subscription& s) {
    subscriptions_.remove(s);
    reject(s.identifier, refused);
}

void cable_connection::on_lease_lost(subscription& s) {
    subscriptions_.remove(s);
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::warn(
            "cable lease lost conn={} agent={}{}: its row is gone, removed by somebody else "
            "or run out while this node was cut off",
            client_.number, s.agent, *more);
    }
    end(protocol::disconnect_reason::lease_lost);
}

void cable_connection::on_owner_changed(subscription& s) {
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::info("cable agent changed owner conn={} agent={} owner={}{}: the session of the "
                     "former owner is told lease_lost",
                     client_.number, s.agent, s.user, *more);
    }
    end(protocol::disconnect_reason::lease_lost);
}

// To come back at once would not help: other nodes use the same database. The subscribe waits as
// for a database that does not answer.
void cable_connection::on_no_room(subscription&) {
    deadlines_.pause_asking(wheel::clock::now(),
                            pick(home_.random(), store_full_pause / 2, store_full_pause));
    reschedule();
}

void cable_connection::on_token_ended() {
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::info("cable token ended conn={} address={} token={} owner={}{}", client_.number,
                     client_.ticket.address(), client_.who->token, client_.who->owner, *more);
    }
    end(protocol::disconnect_reason::token_expired);
}

void cable_connection::on_database_back() {
    if (!ending_ && open_) {
        reschedule();
    }
}

// ---- Time -----------------------------------------------------------------------------------

void cable_connection::on_deadline(time_point) {
    // What fails here has no deadline any more, so nobody would notice its silence.
    guarded("deadline", [this] { do_what_is_due(); });
}

void cable_connection::do_what_is_due() {
    auto const at = home_.timers().now();
    for (;;) {
        auto const due = deadlines_.next_step(at, subscriptions_.times(), output_.is_ping_unsent());
        if (due == deadlines::step::none) {
            break;
        }
        auto const was_ending = ending_;
        perform(due, at.now);
        if (due == deadlines::step::drop || ending_ != was_ending) {
            return; // its end has a deadline of its own
        }
    }
    reschedule();
}

void cable_connection::perform(deadlines::step what, time_point now) {
    using step = deadlines::step;
    switch (what) {
    case step::none:
        break;
    case step::resume:
        resume();
        break;
    case step::drop:
        ending_ = true;
        output_.socket().drop();
        break;
    case step::end_silent:
        end_silent(now);
        break;
    case step::check_token:
        // It may have been extended since: the database decides (P8).
        home_.check_tokens_soon();
        break;
    case step::end_unserved:
        end(protocol::disconnect_reason::unavailable);
        break;
    case step::ask: {
        auto& s = *subscriptions_.first_unsent();
        ask(s, protocol::parse_identifier(s.identifier, shared().settings.channels)->session_id);
        break;
    }
    case step::ping:
    case step::ping_both:
        on_output(output_.send_ping(home_.ping_frame(), what == step::ping_both));
        break;
    case step::native_ping:
        output_.socket().ping();
        break;
    case step::renew:
        renew_due(now);
        break;
    }
}

void cable_connection::end_silent(time_point now) {
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::info(
            "cable peer silent conn={} address={} seconds={}{}", client_.number,
            client_.ticket.address(),
            std::chrono::duration_cast<std::chrono::seconds>(now - deadlines_.evidence()).count(),
            *more);
    }
    // Of a crowded one nothing was read, because it has taken none of its answers in that time:
    // each that it takes lets it be read a little further, and that is evidence.
    if (crowded_) {
        shared().figures.outbox_overflowed();
    }
    end(crowded_ ? protocol::disconnect_reason::too_slow : protocol::disconnect_reason::no_pong);
}

void cable_connection::renew_due(time_point now) {
    while (auto* const s = subscriptions_.first_due(now)) {
        if (!home_.lease_table().renew(*s, now, deadlines_.evidence())) {
            subscriptions_.put_off(*s);
        }
    }
}

void cable_connection::reschedule() {
    if (open_) {
        auto const next = deadlines_.next_wake_up(home_.timers().now(), subscriptions_.times());
        home_.timers().schedule(*this,
                                next.shared == deadlines::never
                                    ? next.exact
                                    : std::min(next.exact, home_.shared_moment(next.shared)));
    }
}

void cable_connection::pause_if(bool in_debt) {
    if (in_debt) {
        shared().figures.limited("input");
        output_.socket().pause();
        reschedule();
    }
}

void cable_connection::resume() {
    if (!crowded_ && deadlines_.is_reading()) {
        output_.socket().resume();
    }
}

void cable_connection::ask(subscription& s, std::optional<std::string> session_id) {
    deadlines_.charge_ask(wheel::clock::now());
    home_.lease_table().ask(s, client_.who->owner, std::move(session_id));
}

// One that fails for want of memory keeps none of the others.
void cable_connection::give_up_all(bool with_grace) {
    auto const grace = with_grace && shared().timings.disconnect_grace.count() > 0 &&
                       shared().phase.load() != node_phase::draining;
    auto& leases = home_.lease_table();
    while (!subscriptions_.empty()) {
        auto& s = subscriptions_.last();
        subscriptions_.remove(s);
        try {
            if (grace && s.lease.is_live()) {
                leases.linger(s, deadlines_.evidence());
            } else {
                leases.give_up(s, presence::release_reason::disconnected);
            }
        } catch (std::exception const& failure) {
            spdlog::error("cable release failed conn={} why=\"{}\"", client_.number,
                          failure.what());
        }
    }
}

// ---- Sending and ending -----------------------------------------------------------------------

void cable_connection::send(frame const& f) {
    if (!ending_) {
        on_output(output_.send(f));
    }
}

void cable_connection::on_output(cable_output::outcome what) {
    if (what == cable_output::outcome::full) {
        shared().figures.outbox_overflowed();
        end(protocol::disconnect_reason::too_slow);
    } else if (!crowded_ && output_.is_crowded()) {
        crowded_ = true;
        shared().figures.limited("output");
        output_.socket().pause();
    }
}

void cable_connection::end(protocol::disconnect_reason why) {
    if (std::exchange(ending_, true)) {
        return;
    }
    reason_ = why;
    auto const at = home_.timers().now();
    deadlines_.close(at.now);
    home_.timers().schedule(*this, deadlines_.next_wake_up(at, {}).exact);
    give_up_all(false);
    if (open_) {
        output_.say_last(goodbye(why));
    }
}

} // namespace presenced::server
