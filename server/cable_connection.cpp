#include "server/cable_connection.hpp"

#include "protocol/codec.hpp"
#include "server/log.hpp"
#include "server/shard.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <exception>
#include <utility>
#include <variant>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// A subscribe that the database has not answered for this long is sent elsewhere, unless the
// connection holds a lease that is worth more.
constexpr auto subscribe_limit = 8s;
// How long a full store is left alone before the same acquire is asked for again; half of it is
// chance, so that those who wait do not come back together.
constexpr std::chrono::milliseconds store_full_pause = 1s;
// How long the closing handshake may take before the socket is dropped, whatever it waits for: the
// peer, or one of Beast's locks (websocket.cpp).
constexpr auto closing_limit = 5s;

// Of each kind that can come for thousands of connections at once.
constexpr unsigned lines_a_second = 100;
// What one connection may take of its shard's time: 10,000 frames or 2 MiB a second, and a tenth of
// a second's worth at once. Beyond, it is read more slowly, so that its neighbours get their turn.
// Fast enough that what a killed client has left in the kernels' buffers is read in a moment, and
// its end with it (P2).
constexpr auto frame_cost = 100us;
constexpr auto kibibyte_cost = 500us;
constexpr auto read_burst = 100ms;
// What one connection may ask of the database: 500 subscribes a second, and a second's worth at
// once. Reading never waits for these; they wait themselves, and an unsubscribe takes one back.
constexpr auto acquire_cost = 2ms;
constexpr auto acquire_burst = 1s;

frame shared_text(std::string_view text) {
    return std::make_shared<std::string const>(text);
}

// Encoded once for everybody.
frame const& welcome() {
    static frame const f = shared_text(protocol::encode_welcome());
    return f;
}

frame const& goodbye(protocol::disconnect_reason why) {
    static auto const all = [] {
        std::array<frame, protocol::all_disconnect_reasons.size()> frames;
        for (auto const reason : protocol::all_disconnect_reasons) {
            frames[static_cast<std::size_t>(reason)] =
                shared_text(protocol::encode_disconnect(reason));
        }
        return frames;
    }();
    return all[static_cast<std::size_t>(why)];
}

} // namespace

cable_connection::cable_connection(shard& home, std::shared_ptr<websocket> socket,
                                   cable_facts facts)
    : shard_{home}
    , socket_{std::move(socket)}
    , facts_{std::move(facts)} {}

cable_connection::~cable_connection() {
    socket_->abandon(); // what waits in it would keep it alive
}

void cable_connection::begin() {
    auto const now = wheel::clock::now();
    evidence_ = now;
    // The handshake has the peer's time-out, too.
    shard_.timers().schedule(*this, now + shard_.shared().timings.peer_timeout);
    socket_->start(*this);
}

// ---- The socket's events --------------------------------------------------------------------

void cable_connection::on_open() {
    open_ = true;
    counted_ = true;
    auto const now = wheel::clock::now();
    evidence_ = now;
    auto& shared = shard_.shared();
    shared.figures.connection_opened();
    if (ending_) {
        // Its end was decided while the handshake was under way.
        if (reason_) {
            say_goodbye();
        }
        return;
    }
    if (!facts_.authorized) {
        end(protocol::disconnect_reason::unauthorized);
        return;
    }
    spdlog::debug("cable opened conn={} address={} owner={}", facts_.number,
                  facts_.ticket.address(), facts_.owner);
    send(welcome());
    // Each connection pings at its own moment, or all of them would at once.
    auto const phase = [&](std::chrono::milliseconds interval) {
        std::uniform_int_distribution<std::int64_t> pick{0, interval.count()};
        return std::chrono::milliseconds{pick(shard_.random())};
    };
    next_ping_ = now + phase(shared.timings.ping);
    next_native_ping_ = now + phase(shared.timings.native_ping());
    // A node that began to drain while this client was on its way in.
    if (shared.phase.load() == node_phase::draining) {
        end(protocol::disconnect_reason::server_restart);
        return;
    }
    reschedule();
}

void cable_connection::on_text(std::string_view text) {
    if (ending_) {
        return;
    }
    charge(frame_cost);
    auto decoded = protocol::decode_frame(text);
    if (!decoded) {
        bad_frame(protocol::to_string(decoded.error()));
        return;
    }
    std::visit([this](auto& c) { on_command(c); }, *decoded);
}

void cable_connection::on_binary() {
    if (!ending_) {
        charge(frame_cost);
        bad_frame(protocol::to_string(protocol::frame_error::binary));
    }
}

void cable_connection::on_control() {
    charge(frame_cost);
}

void cable_connection::on_received(std::size_t bytes) {
    if (bytes == 0) {
        return; // the end
    }
    // Of a frame, a pong, or a long message on a thin line, which no pong can overtake.
    note_evidence();
    charge(kibibyte_cost * bytes / 1024);
}

void cable_connection::on_closing() {
    // The release starts now and not after the handshake, which is the peer's to finish.
    if (!std::exchange(ending_, true)) {
        give_up_all(presence::release_reason::disconnected, false);
        close_by_ = wheel::clock::now() + closing_limit;
        reschedule();
    }
}

void cable_connection::on_sent() {
    if (in_flight_.get() == unsent_ping_) {
        unsent_ping_ = nullptr;
    }
    in_flight_.reset();
    flush();
    if (crowded_ && !outbox_.is_crowded()) {
        crowded_ = false;
        resume();
    }
}

void cable_connection::on_end(socket_end how) {
    // Nothing is left of an end that was decided before, unless it failed half-way.
    auto const was_ending = std::exchange(ending_, true);
    give_up_all(presence::release_reason::disconnected, how == socket_end::lost && !was_ending);
    if (counted_) {
        auto& figures = shard_.shared().figures;
        if (reason_) {
            figures.connection_ended(*reason_);
        } else {
            figures.connection_ended(how == socket_end::closed ? quiet_end::client_closed
                                     : how == socket_end::lost ? quiet_end::lost
                                                               : quiet_end::protocol_error);
        }
        spdlog::debug("cable closed conn={} reason={}", facts_.number,
                      reason_ ? protocol::to_string(*reason_) : std::string_view{"client"});
    }
    shard_.remove(*this); // destroys this object
}

// ---- Commands -------------------------------------------------------------------------------

void cable_connection::on_command(protocol::subscribe_command& c) {
    // Clients send it again every 500 ms until it is confirmed; one row, one confirmation.
    if (find(c.identifier) != nullptr) {
        return;
    }
    auto const& settings = shard_.shared().settings;
    auto params = protocol::parse_identifier(c.identifier, settings.channels);
    if (!params) {
        reject(c.identifier, protocol::to_string(params.error()));
        return;
    }
    if (subscriptions_.size() >= settings.max_subscriptions) {
        reject(c.identifier, protocol::to_string(protocol::reject_cause::too_many_subscriptions));
        return;
    }
    auto& s = shard_.subscribe(*this, params->agent_id, std::move(c.identifier));
    subscriptions_.push_back(&s);
    if (may_ask(wheel::clock::now())) {
        ask(s, std::move(params->session_id));
    } else {
        shard_.shared().figures.limited("subscribes");
    }
    reschedule();
}

void cable_connection::on_command(protocol::unsubscribe_command& c) {
    if (auto* s = find(c.identifier)) {
        spdlog::debug("cable unsubscribed conn={} agent={}", facts_.number, s->agent);
        forget(*s);
        shard_.give_up(*s, presence::release_reason::unsubscribed);
        reschedule(); // what is left may be a subscribe that has waited too long
    }
}

void cable_connection::on_command(protocol::message_command& c) {
    // The channel has no actions.
    bad_frame(find(c.identifier) == nullptr ? "unknown_identifier" : "unknown_action");
}

void cable_connection::bad_frame(std::string_view cause) {
    shard_.shared().figures.bad_frame(cause);
    static thread_local line_limit limit{1};
    if (auto const more = limit.admit()) {
        spdlog::warn("cable bad frame ignored conn={} address={} cause={}{}", facts_.number,
                     facts_.ticket.address(), cause, *more);
    }
}

void cable_connection::reject(std::string_view identifier, std::string_view cause) {
    shard_.shared().figures.rejected(cause);
    spdlog::debug("cable rejected conn={} cause={}", facts_.number, cause);
    send(protocol::encode_reject(identifier));
}

// ---- The database's answers -------------------------------------------------------------------

void cable_connection::on_confirmed(subscription& s) {
    spdlog::debug("cable subscribed conn={} agent={}", facts_.number, s.agent);
    shard_.shared().figures.subscribed(wheel::clock::now() - s.asked_at);
    send(protocol::encode_confirm(s.identifier));
    reschedule();
}

void cable_connection::on_rejected(subscription& s) {
    forget(s);
    reject(s.identifier, "refused");
}

void cable_connection::on_lease_lost(subscription& s) {
    auto const agent = s.agent;
    forget(s);
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::warn(
            "cable lease lost conn={} agent={}{}: its row is gone, removed by somebody else "
            "or run out while this node was cut off",
            facts_.number, agent, *more);
    }
    end(protocol::disconnect_reason::lease_lost);
}

// To come back at once would not help: elsewhere is the same database. It waits as for a database
// that does not answer.
void cable_connection::on_no_room(subscription& s) {
    s.unsent = true;
    std::uniform_int_distribution<std::int64_t> pick{store_full_pause.count() / 2,
                                                     store_full_pause.count()};
    auto const pause = std::chrono::milliseconds{pick(shard_.random())};
    asked_until_ = std::max<time_point>(asked_until_, wheel::clock::now() + acquire_burst + pause);
    reschedule();
}

void cable_connection::on_token_ended() {
    static thread_local line_limit limit{lines_a_second};
    if (auto const more = limit.admit()) {
        spdlog::info("cable token ended conn={} address={} token={} owner={}{}", facts_.number,
                     facts_.ticket.address(), facts_.token, facts_.owner, *more);
    }
    end(protocol::disconnect_reason::token_expired);
}

void cable_connection::on_database_back() {
    if (!ending_ && open_) {
        // Spread over a second, so that the database is not met by all of them at once. Nothing
        // else waits for that, pings above all.
        std::uniform_int_distribution<int> pick{0, 1000};
        renew_from_ = wheel::clock::now() + std::chrono::milliseconds{pick(shard_.random())};
        reschedule();
    }
}

// ---- Time -----------------------------------------------------------------------------------

void cable_connection::note_evidence() {
    evidence_ = wheel::clock::now();
    if (overdue_ && !ending_) {
        renew_due(evidence_);
        reschedule();
    }
}

void cable_connection::renew_due(time_point now) {
    overdue_ = false;
    for (auto* s : subscriptions_) {
        if (std::max(s->lease.renewal_due(), renew_from_) <= now &&
            !shard_.renew(*s, now, evidence_)) {
            overdue_ = true;
        }
    }
}

// Reading pauses once a connection is too deep in debt; what it sends waits in the kernel, and so
// does the client, in the end.
void cable_connection::charge(wheel::clock::duration cost) {
    if (ending_) {
        return;
    }
    auto const now = wheel::clock::now();
    read_until_ = std::max(read_until_, now) + cost;
    if (read_until_ - now <= read_burst) {
        return;
    }
    if (resume_at_ == time_point::max()) {
        shard_.shared().figures.limited("input");
        socket_->pause();
    }
    resume_at_ = read_until_;
    reschedule();
}

void cable_connection::resume() {
    if (!crowded_ && resume_at_ == time_point::max()) {
        socket_->resume();
    }
}

bool cable_connection::may_ask(time_point now) const {
    return asked_until_ <= now + acquire_burst;
}

void cable_connection::ask(subscription& s, std::optional<std::string> session_id) {
    asked_until_ = std::max(asked_until_, wheel::clock::now()) + acquire_cost;
    shard_.ask(s, facts_.owner, std::move(session_id));
}

void cable_connection::on_deadline(time_point now) {
    try {
        do_what_is_due(now);
    } catch (std::exception const& failure) {
        // For want of memory, say. It has no deadline any more, so nobody would notice its silence.
        fail("deadline", failure);
    }
}

void cable_connection::fail(std::string_view what, std::exception const& why) {
    socket_->drop();
    spdlog::error("cable {} failed, dropped conn={} address={} why=\"{}\"", what, facts_.number,
                  facts_.ticket.address(), why.what());
}

void cable_connection::do_what_is_due(time_point now) {
    auto const& timings = shard_.shared().timings;
    if (now >= resume_at_) {
        resume_at_ = time_point::max();
        resume();
    }
    if (ending_ || !open_) {
        if (!open_ || now >= close_by_) {
            ending_ = true;
            socket_->drop();
            return;
        }
        reschedule();
        return;
    }
    // Whatever this thread slept through may have kept the peer's answers from being read.
    auto const heard = std::max(evidence_, shard_.timers().thawed_at());
    if (now - heard >= timings.peer_timeout) {
        static thread_local line_limit limit{lines_a_second};
        if (auto const more = limit.admit()) {
            spdlog::info("cable peer silent conn={} address={} seconds={}{}", facts_.number,
                         facts_.ticket.address(),
                         std::chrono::duration_cast<std::chrono::seconds>(now - evidence_).count(),
                         *more);
        }
        // Of a crowded one nothing was read, because it has taken none of its answers in that time:
        // each that it takes lets it be read a little further, and that is evidence.
        if (crowded_) {
            shard_.shared().figures.outbox_overflowed();
        }
        end(crowded_ ? protocol::disconnect_reason::too_slow
                     : protocol::disconnect_reason::no_pong);
        return;
    }
    if (facts_.expires_at && now >= *facts_.expires_at) {
        // It may have been extended since: the database decides (P8).
        facts_.expires_at.reset();
        shard_.check_tokens_soon();
    }
    for (auto* s : subscriptions_) {
        if (s->lease.state() != presence::lease_state::acquiring) {
            continue;
        }
        if (now - s->asked_at >= subscribe_limit && !holds_confirmed()) {
            end(protocol::disconnect_reason::unavailable);
            return;
        }
        if (s->unsent && may_ask(now)) {
            auto params =
                protocol::parse_identifier(s->identifier, shard_.shared().settings.channels);
            ask(*s, std::move(params->session_id));
        }
    }
    ping_if_due(now);
    renew_due(now);
    if (!ending_) {
        reschedule();
    }
}

void cable_connection::ping_if_due(time_point now) {
    auto const& timings = shard_.shared().timings;
    auto const with_message = now >= next_ping_;
    if (with_message) {
        next_ping_ += timings.ping;
        if (next_ping_ <= now) {
            next_ping_ = now + timings.ping;
        }
    }
    // Not behind an unsent one: a client that does not read gets no pile of them.
    auto const sends_message = with_message && unsent_ping_ == nullptr;
    // A WebSocket ping that would be due before the next message goes along with this one: a packet
    // of its own would cost as much as the message. Not much too early, for it has an answer.
    auto const goes_along = sends_message && next_native_ping_ < next_ping_ &&
                            next_native_ping_ - now < timings.native_ping() / 3;
    auto const pings = now >= next_native_ping_ || goes_along;
    if (pings) {
        next_native_ping_ = std::min(next_native_ping_, now) + timings.native_ping();
        if (next_native_ping_ <= now) {
            next_native_ping_ = now + timings.native_ping();
        }
    }
    if (sends_message) {
        auto const& message = shard_.ping_frame(); // the one of the next second is another
        if (!send(message, pings)) {
            unsent_ping_ = message.get();
        }
    } else if (pings) {
        socket_->ping();
    }
}

cable_connection::time_point cable_connection::next_deadline() const {
    auto next = resume_at_;
    if (ending_) {
        return std::min(next, close_by_);
    }
    auto const& timings = shard_.shared().timings;
    auto const heard = std::max(evidence_, shard_.timers().thawed_at());
    next = std::min(next, heard + timings.peer_timeout);
    auto regular = std::min(next_ping_, next_native_ping_);
    if (facts_.expires_at) {
        next = std::min(next, *facts_.expires_at);
    }
    auto const confirmed = holds_confirmed();
    for (auto const* s : subscriptions_) {
        if (s->lease.state() == presence::lease_state::acquiring) {
            if (s->unsent) {
                next = std::min(next, asked_until_ - acquire_burst);
            }
            // Past the limit it waits on, as long as the connection holds something.
            if (!confirmed) {
                next = std::min(next, s->asked_at + subscribe_limit);
            }
        } else if (!overdue_) {
            regular = std::min(regular, std::max(s->lease.renewal_due(), renew_from_));
        }
    }
    return std::min(next, shard_.shared_moment(regular));
}

void cable_connection::reschedule() {
    if (open_) {
        shard_.timers().schedule(*this, next_deadline());
    }
}

// ---- Leases ---------------------------------------------------------------------------------

bool cable_connection::holds_confirmed() const {
    return std::any_of(subscriptions_.begin(), subscriptions_.end(),
                       [](auto const* s) { return s->lease.is_live(); });
}

subscription* cable_connection::find(std::string_view identifier) const {
    for (auto* s : subscriptions_) {
        if (s->identifier == identifier) {
            return s;
        }
    }
    return nullptr;
}

void cable_connection::forget(subscription& s) {
    std::erase(subscriptions_, &s);
}

void cable_connection::give_up_all(presence::release_reason why, bool with_grace) {
    auto const grace = shard_.shared().timings.disconnect_grace.count() > 0 && with_grace &&
                       shard_.shared().phase.load() != node_phase::draining;
    while (!subscriptions_.empty()) {
        auto* const s = subscriptions_.back();
        subscriptions_.pop_back();
        if (grace && s->lease.is_live()) {
            // The grace counts from now, so the row has to be fresh, if there is evidence for it.
            s->lease.on_database_back(wheel::clock::now());
            (void)shard_.renew(*s, wheel::clock::now(), evidence_); // without any it stays as it is
            shard_.linger(*s);
        } else {
            shard_.give_up(*s, why);
        }
    }
}

// ---- Sending --------------------------------------------------------------------------------

// Returns whether the kernel has it already, as it nearly always has.
bool cable_connection::send(frame const& f, bool with_ping) {
    if (ending_) {
        return false;
    }
    if (open_ && !in_flight_ && outbox_.empty()) {
        return hand_over(f, with_ping);
    }
    if (with_ping) {
        socket_->ping(); // it does not wait for what is queued
    }
    if (!outbox_.push(f)) {
        shard_.shared().figures.outbox_overflowed();
        end(protocol::disconnect_reason::too_slow);
        return false;
    }
    if (!crowded_ && outbox_.is_crowded()) {
        crowded_ = true;
        shard_.shared().figures.limited("output");
        socket_->pause();
    }
    return false;
}

bool cable_connection::hand_over(frame const& f, bool with_ping) {
    if (socket_->send(f, with_ping)) {
        return true;
    }
    in_flight_ = f;
    return false;
}

void cable_connection::flush() {
    while (open_ && !in_flight_ && !outbox_.empty()) {
        if (hand_over(outbox_.front(), false) && outbox_.front().get() == unsent_ping_) {
            unsent_ping_ = nullptr;
        }
        outbox_.pop();
    }
    if (open_ && !in_flight_ && ending_ && reason_) {
        socket_->close();
    }
}

void cable_connection::end(protocol::disconnect_reason why) {
    if (std::exchange(ending_, true)) {
        return;
    }
    reason_ = why;
    give_up_all(presence::release_reason::disconnected, false);
    close_by_ = wheel::clock::now() + closing_limit;
    shard_.timers().schedule(*this, close_by_);
    if (open_) {
        say_goodbye();
    }
}

void cable_connection::say_goodbye() {
    outbox_ = {};
    outbox_.push_last(goodbye(*reason_));
    flush();
}

} // namespace presenced::server
