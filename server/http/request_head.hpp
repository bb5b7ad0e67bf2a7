// The head of an HTTP/1 request as bytes: where it ends, and what about it HTTP forbids.
//
// Beast parses the head afterwards. It joins folded lines, takes two equal lengths, and takes a
// request without a Host; each of these lets a proxy and a server see two different requests
// (RFC 9112 section 11.2), so each is refused here. Pure, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace presenced::server {

// Finds the head in bytes that come in pieces. Looks at each byte once.
class head_scanner {
public:
    enum class state : std::uint8_t {
        incomplete,
        complete,
        garbage, // whatever follows, this becomes no head
    };

    // `bytes`: all that have come so far, from the first on.
    state scan(std::string_view bytes);

    // Where the head begins: behind the empty lines that a client may send before a request
    // (RFC 9112 section 2.2).
    std::size_t begin() const { return begin_; }
    // When complete: behind the empty line that ends the head.
    std::size_t end() const { return at_; }

private:
    std::size_t begin_ = 0;
    std::size_t at_ = 0;
    std::size_t line_ = 0; // where the line at `at_` begins
};

// Why a request is refused.
struct request_problem {
    unsigned status;        // of the answer
    std::string_view cause; // a word for metrics and log; a constant of the program
    std::string_view text;  // a sentence for the client; a constant of the program
};

// What HTTP forbids about a head, which is complete. Nothing when it may go on.
std::optional<request_problem> find_problem(std::string_view head);

// What a request asks for, whichever legal form its target has (RFC 9112 section 3.2).
struct request_target {
    std::string
        path_and_query; // origin form; empty when the target names no resource: `*`, CONNECT
    std::string host;   // of the absolute form, where it counts instead of the Host field
};

// Whether the target is in origin form, as nearly every one is: then it is its path and query, and
// need not be parsed.
bool is_origin_form(std::string_view method, std::string_view target);
// Nothing when the target has no form that the method allows.
std::optional<request_target> parse_target(std::string_view method, std::string_view target);

} // namespace presenced::server
