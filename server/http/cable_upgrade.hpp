// The handlers that turn a request into a cable connection, or say why it does not become one.
// On the shard's thread.
#pragma once

#include <memory>

namespace presenced::server {

class http_exchange;

// In this order: an upgrade (404), an origin that is allowed (404), a handshake that RFC 6455
// allows (400, 426), a node that takes clients (503), room (503), the token (429, 503), room for
// its owner (503). A bad token is upgraded, to be told so on the cable.
void upgrade_to_cable(std::shared_ptr<http_exchange> const& exchange);

// 404; who asked for a WebSocket finds in the log at which path there is one.
void answer_no_such_page(std::shared_ptr<http_exchange> const& exchange);

} // namespace presenced::server
