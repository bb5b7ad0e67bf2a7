// A bad network path to a server on loopback: a TCP proxy that delays, swallows, cuts or refuses.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace presenced::tests {

// Thread-safe; it has a thread of its own. A fault is in effect when the call that makes it
// returns, on the connections there are and on those to come, until heal().
class tcp_proxy {
public:
    enum class towards : std::uint8_t { server, client, both };

    // Listens on a port of 127.0.0.1 that it picks, and connects to server_port there. The server
    // need not be up. Throws boost::system::system_error.
    explicit tcp_proxy(std::uint16_t server_port);
    // Cuts what is left.
    ~tcp_proxy();

    std::uint16_t port() const;

    // Whatever is sent this way arrives `by` later, in order: a long path, not a narrow one.
    void delay(std::chrono::milliseconds by, towards way = towards::both);
    // Nothing arrives this way any more, not even the end of a connection, and no side is told.
    // Who connects now gets a connection, and silence. As on a real path, what TCP has taken is
    // not lost but late: heal() delivers it.
    void black_hole(towards way = towards::both);
    // Resets every connection, at both ends. New ones are taken.
    void cut();
    // ... and takes no new ones: they are refused, as on a host where nobody listens.
    void refuse();
    // A good path again. Whoever was cut has to come back by himself.
    void heal();

    // Client connections that are open.
    std::size_t connections() const;
    // Bytes that have arrived at the server, or at clients, so far.
    std::uint64_t delivered(towards way) const;

private:
    class engine;
    std::unique_ptr<engine> engine_;
};

} // namespace presenced::tests
