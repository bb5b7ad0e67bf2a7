// Accepts connections and hands each to a shard (placement.hpp).
// Runs on the app's own io_context; not thread-safe.
#pragma once

#include "server/loop/net.hpp"
#include "server/node/config.hpp"

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/steady_timer.hpp>

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace presenced::server {

class shard;

class listener {
public:
    listener(asio::io_context& context, std::span<std::unique_ptr<shard> const> shards);

    // Binds every address, or throws std::runtime_error with a line that names the address and the
    // cure. An address of a family that this machine lacks is passed over, unless it is the only
    // one. Returns where it listens.
    std::vector<std::string> listen(std::span<endpoint const> where);

    void start();
    void stop();

private:
    using acceptor = asio::basic_socket_acceptor<tcp, executor>;
    struct open_address {
        acceptor socket;
        asio::steady_timer pause; // after an error
    };

    void accept(open_address& d);
    bool on_accepted(shard& home, error_code ec, tcp_socket socket);
    shard& next_shard() const;

    asio::io_context& context_;
    std::span<std::unique_ptr<shard> const> shards_;
    std::vector<std::unique_ptr<open_address>> addresses_;
};

} // namespace presenced::server
