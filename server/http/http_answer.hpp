// What is answered to an HTTP request, and how it looks on the wire. Pure, any thread.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace presenced::server {

struct http_answer {
    unsigned status = 200;
    std::string body;
    std::string content_type = "text/plain; charset=utf-8";
    // Besides those that every answer has: Retry-After, Allow ...
    std::vector<std::pair<std::string, std::string>> fields = {};
    // Whether the connection ends with it, whatever the client would like.
    bool closes = false;
};

// A line of text, and the connection ends.
http_answer refuse(unsigned status, std::string_view text);
// 503 (or another status), and when it may be worth to ask again.
http_answer try_later(std::string_view text, std::chrono::seconds wait, unsigned status = 503);

// How the request was that is answered.
struct answered_request {
    bool is_head = false; // HEAD: the fields of the answer, and no body
    bool is_old = false;  // HTTP/1.0, where a connection ends unless both say otherwise
    bool keep_alive = true;
};
// The bytes of the answer.
std::string serialize(http_answer const& answer, answered_request const& to);

} // namespace presenced::server
