#include "server/http/http_answer.hpp"

namespace presenced::server {

namespace {

// Those that this server gives (RFC 9110 section 15).
std::string_view reason_of(unsigned status) {
    switch (status) {
    case 200:
        return "OK";
    case 201:
        return "Created";
    case 204:
        return "No Content";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 408:
        return "Request Timeout";
    case 409:
        return "Conflict";
    case 413:
        return "Content Too Large";
    case 415:
        return "Unsupported Media Type";
    case 417:
        return "Expectation Failed";
    case 422:
        return "Unprocessable Content";
    case 426:
        return "Upgrade Required";
    case 429:
        return "Too Many Requests";
    case 431:
        return "Request Header Fields Too Large";
    case 500:
        return "Internal Server Error";
    case 501:
        return "Not Implemented";
    case 503:
        return "Service Unavailable";
    case 505:
        return "HTTP Version Not Supported";
    default:
        return ""; // a client goes by the number
    }
}

void append_field(std::string& head, std::string_view name, std::string_view value) {
    head.append(name).append(": ").append(value).append("\r\n");
}

} // namespace

http_answer refuse(unsigned status, std::string_view text) {
    http_answer answer;
    answer.status = status;
    answer.body.append(text).append("\n");
    answer.closes = true;
    return answer;
}

http_answer try_later(std::string_view text, std::chrono::seconds wait, unsigned status) {
    auto answer = refuse(status, text);
    answer.fields.emplace_back("Retry-After", std::to_string(wait.count()));
    return answer;
}

std::string serialize(http_answer const& answer, answered_request const& to) {
    std::string bytes = "HTTP/1.1 " + std::to_string(answer.status) + " ";
    bytes.append(reason_of(answer.status)).append("\r\n");
    append_field(bytes, "Server", "presenced");
    append_field(bytes, "Content-Type", answer.content_type);
    append_field(bytes, "Cache-Control", "no-store");
    for (auto const& [name, value] : answer.fields) {
        append_field(bytes, name, value);
    }
    if (answer.closes || !to.keep_alive) {
        append_field(bytes, "Connection", "close");
    } else if (to.is_old) {
        append_field(bytes, "Connection", "keep-alive");
    }
    append_field(bytes, "Content-Length", std::to_string(answer.body.size()));
    bytes += "\r\n";
    if (!to.is_head) {
        bytes += answer.body;
    }
    return bytes;
}

} // namespace presenced::server
