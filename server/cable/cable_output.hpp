// What a cable connection writes: frames go to the kernel at once as long as the client reads, and
// wait in the outbox while it does not.
// Not thread-safe: its connection's shard only.
#pragma once

#include "server/cable/outbox.hpp"
#include "server/cable/websocket.hpp"

#include <cstdint>
#include <string>

namespace presenced::server {

class cable_output {
public:
    // The WebSocket must outlive this.
    explicit cable_output(websocket& socket)
        : socket_{socket} {}

    enum class outcome : std::uint8_t {
        taken,  // the kernel has it, as it nearly always has
        queued, // it waits for what was sent before
        full,   // too much waits already: it is not sent
    };
    outcome send(frame const& f, bool with_native_ping = false);
    outcome send_ping(frame const& f, bool with_native_ping);
    // The last frame there is: what waits is thrown away, and the closing handshake follows.
    void say_last(frame const& f);

    // From the WebSocket: what it could not hand over at once is with the kernel. Sends what waits.
    void on_sent();

    // Whether so much waits that the client is not read any more (outbox.hpp).
    bool is_crowded() const { return outbox_.is_crowded(); }
    bool is_ping_unsent() const { return unsent_ping_ != nullptr; }

private:
    bool hand_over(frame const& f, bool with_native_ping);
    void flush();

    websocket& socket_;
    outbox outbox_;
    frame in_flight_;                          // with the socket; the outbox waits for it
    std::string const* unsent_ping_ = nullptr; // a ping that the kernel has not taken yet
    bool closes_ = false;                      // once everything is sent
};

} // namespace presenced::server
