// Which handler answers a request, and what is answered when none does.
//
// A handler is a function of a request (http_exchange.hpp); it answers at once or later, once.
// A router is filled while the process starts and not changed afterwards: then any thread may ask.
#pragma once

#include "server/http/http_answer.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace presenced::server {

class http_exchange;

using http_handler = std::function<void(std::shared_ptr<http_exchange> const&)>;

// How long a request's body may be, in bytes; 413 beyond it.
inline constexpr std::uint64_t body_limit = 1024 * 1024;

struct route {
    std::string method; // "GET", which answers HEAD as well
    // Segments of it in braces stand for any one segment: `/agents/{id}`.
    std::string pattern;
    http_handler handle;
    // The media type that a body must have, such as "application/json"; 415 for another. Empty: a
    // body means nothing here, and is read and forgotten.
    std::string body_type = {};
};

class router {
public:
    void add(route r);
    // Who answers what no route is for, instead of a plain 404.
    void otherwise(http_handler handle) { otherwise_ = std::move(handle); }

    struct found {
        http_handler const* handle = nullptr;
        std::string_view body_type;        // as the route's
        std::vector<std::string> captured; // what stood for the segments in braces, in their order
    };
    // `path`: without its query; empty for a request that names no resource (`OPTIONS *`). The
    // answer is 405 with `Allow` where the path has other methods, and 404 when nobody is to
    // answer.
    std::variant<found, http_answer> match(std::string_view method, std::string_view path) const;

private:
    std::string methods_of(std::string_view path) const;

    std::vector<route> routes_;
    http_handler otherwise_;
};

// What is wrong with a body before it is read. `type`: the value of Content-Type; `length`: of
// Content-Length, nothing when the body is chunked.
std::optional<http_answer> refuse_body(router::found const& to, std::string_view type,
                                       std::optional<std::uint64_t> length);

} // namespace presenced::server
