#include "server/cable/deadlines.hpp"

#include <algorithm>
#include <chrono>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// A subscribe that the database has not answered for this long is sent to another node, unless the
// connection holds a lease that is worth more.
constexpr auto subscribe_limit = 8s;
// How long the closing handshake may take before the socket is dropped, whatever it waits for: the
// peer, or one of Beast's locks (websocket.cpp).
constexpr auto closing_limit = 5s;
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

} // namespace

void deadlines::begin(moment const& at) {
    hear(at);
    close_by_ = at.now + timings_.peer_timeout;
}

void deadlines::open(moment const& at, duration first_ping, duration first_native_ping) {
    hear(at);
    close_by_ = never;
    next_ping_ = at.now + first_ping;
    next_native_ping_ = at.now + first_native_ping;
}

void deadlines::close(time_point now) {
    close_by_ = std::min(close_by_, now + closing_limit);
    next_ping_ = never;
}

void deadlines::hear(moment const& at) {
    evidence_ = at.now;
    slept_at_evidence_ = at.slept;
}

// Reading pauses once a connection is too deep in debt; what it sends waits in the kernel, and so
// does the client, in the end.
bool deadlines::charge(duration cost, time_point now) {
    read_until_ = std::max(read_until_, now) + cost;
    if (read_until_ - now <= read_burst) {
        return false;
    }
    auto const was_reading = is_reading();
    resume_at_ = read_until_;
    return was_reading;
}

bool deadlines::charge_frame(time_point now) {
    return charge(frame_cost, now);
}

bool deadlines::charge_bytes(std::size_t bytes, time_point now) {
    return charge(kibibyte_cost * bytes / 1024, now);
}

void deadlines::charge_ask(time_point now) {
    asked_until_ = std::max(asked_until_, now) + acquire_cost;
}

void deadlines::pause_asking(time_point now, duration pause) {
    asked_until_ = std::max(asked_until_, now + acquire_burst + pause);
}

bool deadlines::may_ask(time_point now) const {
    return asked_until_ <= now + acquire_burst;
}

// Time in which the process did not run is not the peer's silence. When it has just gone on, what
// the peer said meanwhile may still wait in the socket: it is read first, for a moment. That moment
// is granted once, or a process that stops again and again would never judge anybody.
deadlines::time_point deadlines::silent_at(moment const& at) const {
    auto const reading = timings_.peer_timeout / 10;
    auto const silent = evidence_ + timings_.peer_timeout + (at.slept - slept_at_evidence_);
    return std::clamp<time_point>(at.thawed_at + reading, silent, silent + reading);
}

deadlines::step deadlines::next_step(moment const& at, lease_times const& leases,
                                     bool ping_is_unsent) {
    auto const now = at.now;
    if (now >= resume_at_) {
        resume_at_ = never;
        return step::resume;
    }
    if (!is_open()) {
        return now >= close_by_ ? step::drop : step::none;
    }
    if (now >= silent_at(at)) {
        return step::end_silent;
    }
    if (now >= token_ends_) {
        token_ends_ = never;
        return step::check_token;
    }
    if (!leases.any_confirmed && leases.oldest_pending != never &&
        now - leases.oldest_pending >= subscribe_limit) {
        return step::end_unserved;
    }
    if (leases.any_unsent && may_ask(now)) {
        return step::ask;
    }
    if (auto const ping = next_ping(now, ping_is_unsent); ping != step::none) {
        return ping;
    }
    return leases.next_renewal <= now ? step::renew : step::none;
}

deadlines::step deadlines::next_ping(time_point now, bool ping_is_unsent) {
    // From one ping to the next, but never several at once after a pause.
    auto const advance = [now](time_point& next, duration interval) {
        next += interval;
        if (next <= now) {
            next = now + interval;
        }
    };
    auto const json_is_due = now >= next_ping_;
    if (json_is_due) {
        advance(next_ping_, timings_.ping);
    }
    // Not behind an unsent one: a client that does not read gets no pile of them.
    auto const sends_json = json_is_due && !ping_is_unsent;
    // A WebSocket ping that would be due before the next message goes along with this one: a packet
    // of its own would cost as much as the message. Not much too early, for it has an answer.
    auto const goes_along = sends_json && next_native_ping_ < next_ping_ &&
                            next_native_ping_ - now < timings_.native_ping() / 3;
    auto const sends_native = now >= next_native_ping_ || goes_along;
    if (sends_native) {
        next_native_ping_ = std::min(next_native_ping_, now);
        advance(next_native_ping_, timings_.native_ping());
    }
    if (sends_json) {
        return sends_native ? step::ping_both : step::ping;
    }
    return sends_native ? step::native_ping : step::none;
}

deadlines::wake_up deadlines::next_wake_up(moment const& at, lease_times const& leases) const {
    wake_up next;
    next.exact = resume_at_;
    if (!is_open()) {
        next.exact = std::min(next.exact, close_by_);
        return next;
    }
    next.exact = std::min({next.exact, silent_at(at), token_ends_});
    if (leases.any_unsent) {
        next.exact = std::min(next.exact, asked_until_ - acquire_burst);
    }
    // Past the limit a subscribe waits on, as long as the connection holds something.
    if (!leases.any_confirmed && leases.oldest_pending != never) {
        next.exact = std::min(next.exact, leases.oldest_pending + subscribe_limit);
    }
    next.shared = std::min({next_ping_, next_native_ping_, leases.next_renewal});
    return next;
}

} // namespace presenced::server
