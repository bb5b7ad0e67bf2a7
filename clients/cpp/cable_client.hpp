// An asynchronous Action Cable client: what `presenced connect`, the tests and the load driver use.
//
// Everything happens on the io_context that it was given, which one thread runs; nothing here may
// be called from another. Light enough for tens of thousands in a process.
#pragma once

#include "protocol/message.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/system/error_code.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace presenced::clients {

using header_list = std::vector<std::pair<std::string, std::string>>;

struct cable_client_options {
    std::string host = "127.0.0.1"; // an address without brackets, or a name
    std::uint16_t port = 8080;
    std::string target = "/cable";
    std::string host_header; // empty: host:port
    std::optional<std::string> origin;
    header_list headers; // further ones
    // Offered in this order; none: no such header.
    std::vector<std::string> subprotocols{"actioncable-v1-json", "actioncable-unsupported"};

    enum class token_place : std::uint8_t { query, bearer };
    std::optional<std::string> token;
    token_place token_in = token_place::query;

    // Source address. The port is left to connect() (IP_BIND_ADDRESS_NO_PORT), which takes any
    // that is free for this destination.
    std::optional<std::string> bind_address;
    bool no_delay = true;
    std::optional<int> receive_buffer;         // SO_RCVBUF; a small one makes a slow client sooner
    std::chrono::milliseconds timeout{10'000}; // to connect and upgrade; again to close
    std::size_t max_message = 1 << 20;
};

// What happens to a client. After start() comes either on_refused(), or on_closed(), or on_open(),
// messages and on_closed(). The client may be destroyed in any of them.
class cable_client_handler {
public:
    virtual ~cable_client_handler() = default;

    // Upgraded; the subprotocol is what the server chose, empty when it named none.
    virtual void on_open(std::string_view /*subprotocol*/) {}
    // Answered with something else than 101.
    virtual void on_refused(unsigned /*status*/, header_list const& /*headers*/) {}
    // A text frame. Unless it is overridden, a message that a client knows goes to on_message().
    virtual void on_text(std::string_view text);
    virtual void on_message(protocol::server_message const& /*message*/) {}
    // The end. code: what the peer's close frame said (1005: nothing), or 1006 without one; and
    // then `error` says what broke: connecting, the handshake, the connection.
    virtual void on_closed(std::uint16_t /*code*/, boost::system::error_code /*error*/) {}
};

class cable_client {
public:
    // `io` and `handler` outlive it.
    cable_client(boost::asio::io_context& io, cable_client_options options,
                 cable_client_handler& handler);
    // Kills the connection; the handler hears no more.
    ~cable_client();
    cable_client(cable_client const&) = delete;
    cable_client& operator=(cable_client const&) = delete;

    // Connects and upgrades. Once.
    void start();

    // Queued, and sent in order. Nothing happens before on_open() or after the end.
    void send_text(std::string text);
    void send_binary(std::string bytes);
    void subscribe(std::string identifier);
    void unsubscribe(std::string identifier);

    // The closing handshake, once what is queued has been sent.
    void close(std::uint16_t code = 1000);
    // Closes without a word: the peer gets a reset.
    void kill();
    // From now on nothing is taken from the socket, so that the peer sees a process that is frozen:
    // its pings go unanswered and its output piles up.
    void stop_reading();
    void resume_reading();

    bool is_open() const;
    std::uint64_t native_pings() const; // received, and each answered
    std::size_t unsent() const;         // frames queued

private:
    struct connection;
    std::shared_ptr<connection> connection_;
};

} // namespace presenced::clients
