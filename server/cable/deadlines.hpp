// When what is due on one cable connection: pings, renewals, the patience with a silent peer, the
// pace at which it is read and may ask the database, its token's end, its closing.
// A state machine: events and times go in, the steps that are due come out, one by one.
// Pure: no I/O, no clock. Not thread-safe: its connection's shard only.
#pragma once

#include "presence/settings.hpp"
#include "server/loop/uptime.hpp"

#include <cstddef>
#include <cstdint>

namespace presenced::server {

// What the leases of a connection wait for (subscription_set).
struct lease_times {
    static constexpr auto never = presence::time_point::max();

    bool any_confirmed = false;
    bool any_unsent = false;                     // a subscribe that the store does not have yet
    presence::time_point oldest_pending = never; // since when a subscribe has no answer
    presence::time_point next_renewal = never;   // never, too, while one waits for evidence
};

class deadlines {
public:
    using time_point = presence::time_point;
    using duration = presence::duration;
    static constexpr auto never = lease_times::never;

    // In the order in which they are done when all are due.
    enum class step : std::uint8_t {
        none,
        resume,       // read on: its input is paid for
        drop,         // the handshake, or the closing one, took too long
        end_silent,   // nothing was heard for peer_timeout
        check_token,  // it may have run out
        end_unserved, // a subscribe has waited for subscribe_limit, and no lease is worth more
        ask,          // ask the store for the next unsent subscribe
        ping,         // send a JSON ping
        ping_both,    // ... and a WebSocket ping in the same packet
        native_ping,  // send a WebSocket ping alone
        renew,        // renew the leases that are due
    };

    explicit deadlines(presence::settings const& timings)
        : timings_{timings} {}

    // ---- Events -----------------------------------------------------------------------------

    // The handshake begins. It has the peer's time-out, too.
    void begin(moment const& at);
    // The handshake is through, and the end is not decided; the first pings leave after these
    // times.
    void open(moment const& at, duration first_ping, duration first_native_ping);
    // The end is decided: nothing else is due any more. The closing handshake has its limit.
    void close(time_point now);
    // Something came from the peer.
    void hear(moment const& at);
    // What came costs the shard's time. True: reading has to pause, until step::resume.
    bool charge_frame(time_point now);
    bool charge_bytes(std::size_t bytes, time_point now);
    // The store was asked for a lease.
    void charge_ask(time_point now);
    // The store had no room: asking pauses.
    void pause_asking(time_point now, duration pause);
    // When the token ends.
    void expect_token_end(time_point at) { token_ends_ = at; }

    // ---- Questions ----------------------------------------------------------------------------

    bool may_ask(time_point now) const;
    bool is_reading() const { return resume_at_ == never; }
    // When something was last heard.
    time_point evidence() const { return evidence_; }

    // The next step that is due; its time has moved on when this returns. `ping_is_unsent`: the
    // last JSON ping still waits for the peer to read.
    step next_step(moment const& at, lease_times const& leases, bool ping_is_unsent);

    // When next_step() will have something: exactly at the one time, and at the other or a little
    // later, so that connections can share it.
    struct wake_up {
        time_point exact = never;
        time_point shared = never;
    };
    wake_up next_wake_up(moment const& at, lease_times const& leases) const;

private:
    bool is_open() const { return next_ping_ != never; }
    bool charge(duration cost, time_point now);
    time_point silent_at(moment const& at) const;
    step next_ping(time_point now, bool ping_is_unsent);

    presence::settings const& timings_;
    time_point evidence_{};
    duration slept_at_evidence_{};
    time_point next_ping_ = never; // never: not open yet, or closing
    time_point next_native_ping_ = never;
    time_point close_by_ = never;
    time_point token_ends_ = never;
    time_point resume_at_ = never;
    time_point read_until_{};  // its input is paid for until then; ahead of now: in debt
    time_point asked_until_{}; // the same for what it asks of the database
};

} // namespace presenced::server
