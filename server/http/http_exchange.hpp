// One HTTP request under way, as its handler sees it. Everything on its shard's thread.
#pragma once

#include "server/cable/websocket_factory.hpp"
#include "server/http/forwarded.hpp"
#include "server/http/http_answer.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace presenced::server {

class http_host;
struct client_info;

class http_exchange {
public:
    virtual ~http_exchange() = default;

    // What was asked. The target is in origin form, whatever form it came in.
    virtual http_request const& request() const = 0;
    // What stood for the segments in braces of the route's pattern.
    virtual std::vector<std::string> const& captured() const = 0;
    // For whom it is, and by which name it asks for this server.
    virtual client_of_request client() const = 0;
    virtual http_host& home() = 0;

    // One of these, once. A handler that does neither within 10 s has its connection dropped.
    virtual void answer(http_answer what) = 0;
    // Answers the upgrade: the socket belongs to a cable connection from now on. `subprotocol`: a
    // constant of the program.
    virtual void upgrade(std::string_view subprotocol, client_info facts) = 0;
};

// A list that a request may spread over several fields of one name (RFC 9110 section 5.3). One
// field, the usual case, is not copied: the text lives as long as the request and this do.
class field_list {
public:
    field_list(http_request const& request, std::string_view name);
    field_list(field_list const&) = delete;
    field_list& operator=(field_list const&) = delete;

    std::string_view text() const { return text_; }

private:
    std::string joined_; // of several fields
    std::string_view text_;
};

// Whether such a list has this element, in any case.
bool list_has(http_request const& request, std::string_view name, std::string_view element);
// The value of a field, empty when there is none.
std::string_view value_of(http_request const& request, std::string_view name);
// The target without its query.
std::string_view path_of(http_request const& request);

// Whether it asks for a WebSocket (RFC 6455 section 4.1), whatever may be wrong with how it does.
bool asks_for_websocket(http_request const& request);

} // namespace presenced::server
