// One connection as long as it speaks HTTP: reads a request, asks the router who answers it, writes
// the answer, and again. Everything on its shard's thread.
#pragma once

#include "server/loop/net.hpp"

#include <boost/intrusive/list_hook.hpp>

#include <chrono>

namespace presenced::server {

class http_host;

class http_session {
public:
    virtual ~http_session() = default;

    // Closes the socket.
    virtual void drop() = 0;
    // Nothing is under way but the peer's sending or taking: no handler is at work.
    virtual bool is_expendable() const = 0;

    // When the shard got it, and its place among the others, oldest first.
    std::chrono::steady_clock::time_point arrived;
    boost::intrusive::list_member_hook<> place;
};

// Serves the socket; keeps itself alive until it is closed or has become a WebSocket.
void start_http(http_host& home, tcp_socket socket);

} // namespace presenced::server
