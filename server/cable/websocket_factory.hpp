// Where a request that asks for an upgrade becomes a websocket. Apart from websocket.hpp, because
// this one drags in Beast's HTTP types.
#pragma once

#include "server/cable/websocket.hpp"
#include "server/loop/net.hpp"

#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>

#include <memory>
#include <string_view>

namespace presenced::server {

using http_request = boost::beast::http::request<boost::beast::http::string_body>;

// `subprotocol` is answered in the handshake unless it is empty; a constant of the program.
std::shared_ptr<websocket> make_websocket(tcp_socket socket, http_request request,
                                          std::string_view subprotocol);

} // namespace presenced::server
