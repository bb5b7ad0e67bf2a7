#include "server/http/http_exchange.hpp"

#include "base/text.hpp"

#include <algorithm>

namespace presenced::server {

namespace {

std::string_view view(boost::beast::string_view s) {
    return {s.data(), s.size()};
}

boost::beast::string_view beast_view(std::string_view s) {
    return {s.data(), s.size()};
}

} // namespace

field_list::field_list(http_request const& request, std::string_view name) {
    auto const [first, last] = request.equal_range(beast_view(name));
    for (auto it = first; it != last; ++it) {
        auto const value = view(it->value());
        if (text_.empty()) {
            text_ = value;
        } else {
            if (joined_.empty()) {
                joined_ = text_;
            }
            joined_.append(", ").append(value);
            text_ = joined_;
        }
    }
}

bool list_has(http_request const& request, std::string_view name, std::string_view element) {
    field_list const list{request, name};
    auto rest = list.text();
    while (!rest.empty()) {
        auto const end = std::min(rest.find(','), rest.size());
        if (base::equal_ignoring_case(base::trim(rest.substr(0, end), base::blanks), element)) {
            return true;
        }
        rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    return false;
}

std::string_view value_of(http_request const& request, std::string_view name) {
    auto const it = request.find(beast_view(name));
    return it == request.end() ? std::string_view{} : view(it->value());
}

std::string_view path_of(http_request const& request) {
    auto const target = view(request.target());
    return target.substr(0, target.find('?'));
}

bool asks_for_websocket(http_request const& request) {
    return request.method() == boost::beast::http::verb::get && request.version() >= 11 &&
           list_has(request, "Connection", "upgrade") && list_has(request, "Upgrade", "websocket");
}

} // namespace presenced::server
