// What a cable connection writes: frames go to the kernel at once as long as the client reads, and
// wait in the outbox while it does not.
// Not thread-safe: its connection's shard only.
#pragma once

#include "server/cable/outbox.hpp"
#include "server/cable/websocket.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace presenced::server {

class cable_output {
public:
    explicit cable_output(std::shared_ptr<websocket> socket)
        : socket_{std::move(socket)} {}

    // For everything but sending messages and closing.
    websocket& socket() { return *socket_; }

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

    std::shared_ptr<websocket> socket_;
    outbox outbox_;
    std::string const* unsent_ping_ = nullptr; // a ping that the kernel has not taken yet
    std::string const* in_flight_ = nullptr;   // with the socket; the outbox waits for it
    bool closes_ = false;                      // once everything is sent
};

} // namespace presenced::server
