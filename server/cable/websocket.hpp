// The WebSocket of one connection (RFC 6455), with Beast kept behind it.
// Everything on its shard's thread.
#pragma once

#include "server/cable/outbox.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace presenced::server {

// How a WebSocket came to its end.
enum class socket_end : std::uint8_t {
    closed,   // with a close frame, either side first
    lost,     // without one: reset, end of file, time-out
    violated, // the peer broke the protocol, or sent a message too long; it was told why
};

class websocket_owner {
public:
    virtual void on_open() = 0;
    // A whole message; `text` is valid during the call only.
    virtual void on_text(std::string_view text) = 0;
    virtual void on_binary() = 0;
    // A ping or pong.
    virtual void on_control() = 0;
    // A close frame has come, or one was sent for a protocol error; on_end() follows once the peer
    // has closed, too.
    virtual void on_closing() = 0;
    // So many bytes were taken from the socket: the evidence that somebody is there. What is in
    // them is reported next, if it is whole. 0 at the end.
    virtual void on_received(std::size_t bytes) = 0;
    // What send() could not hand over at once is with the kernel; the next may be sent. The frame
    // lives until this returns.
    virtual void on_sent() = 0;
    // The last call ever made; the owner may destroy itself in it.
    virtual void on_end(socket_end how) = 0;

protected:
    ~websocket_owner() = default;
};

class websocket {
public:
    virtual ~websocket() = default;

    // Answers the upgrade; on_open() or on_end() follows.
    virtual void start(websocket_owner& owner) = 0;
    // Sends one text message, and a WebSocket ping in the same packet before it if there is to be
    // one. Returns true when the kernel has it all; otherwise on_sent() or on_end() follows, and
    // nothing else may be sent before. Throws std::bad_alloc; then on_end() follows.
    virtual bool send(frame const& f, bool with_ping) = 0;
    // Sends a WebSocket ping by itself, unless the last one is still unsent.
    virtual void ping() = 0;
    // Takes nothing more from the socket until resume(): the kernel's buffers fill up and the peer
    // has to wait. What has been taken, up to 1.5 KiB, is still reported. Not once close() was
    // called: the peer's answer has to be read.
    virtual void pause() = 0;
    virtual void resume() = 0;
    // Starts the closing handshake; on_end() follows. Not while a message is being sent, which
    // would be cut off.
    virtual void close() = 0;
    // Ends it at once; on_end() follows.
    virtual void drop() = 0;
    // Its owner is gone: it is closed, and nobody is called any more.
    virtual void abandon() = 0;
};

} // namespace presenced::server
