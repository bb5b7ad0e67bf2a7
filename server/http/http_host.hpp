// What an HTTP connection and its handlers need of the shard that they are on. Everything on the
// shard's thread.
#pragma once

#include "server/auth/auth_host.hpp"
#include "server/auth/client_info.hpp"
#include "server/cable/websocket.hpp"

#include <memory>

namespace presenced::server {

class http_session;
class router;

class http_host : public auth_host {
public:
    virtual router const& routes() const = 0;
    virtual void keep_http(http_session& s) = 0;
    virtual void forget_http(http_session& s) = 0;
    // A request asked for an upgrade and may have it.
    virtual void open_cable(std::shared_ptr<websocket> socket, client_info client) = 0;

protected:
    ~http_host() = default;
};

} // namespace presenced::server
