// HTTP by hand: a blocking socket on which a test writes what it likes, and a small GET.
#pragma once

#include "tests/support/eventually.hpp"

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace presenced::tests {

using headers = std::vector<std::pair<std::string, std::string>>;

struct http_answer {
    unsigned status = 0;
    std::map<std::string, std::string> headers; // names in lower case
    std::string body;

    // Empty when there is no such header.
    std::string header(std::string const& name) const {
        auto const it = headers.find(name);
        return it == headers.end() ? std::string{} : it->second;
    }
};

class raw_connection {
public:
    // What the kernel keeps for it (SO_SNDBUF, SO_RCVBUF); 0: what it likes, megabytes on loopback.
    struct buffers {
        int sending = 0;
        int receiving = 0;
    };

    // Throws std::system_error when nobody listens.
    explicit raw_connection(std::uint16_t port, char const* from = nullptr, buffers sizes = {0, 0});
    ~raw_connection();
    raw_connection(raw_connection const&) = delete;
    raw_connection& operator=(raw_connection const&) = delete;

    void send(std::string_view bytes) const;
    // As many as it takes at once; nothing when the connection has ended.
    std::optional<std::size_t> send_some(std::string_view bytes) const;
    // The next answer, its body by Content-Length. Nothing when none is complete within `limit`.
    std::optional<http_answer> answer(milliseconds limit = patience);
    // Whether the peer has ended the connection within `limit`.
    bool ended(milliseconds limit = patience);
    // At least n bytes, raw; fewer when time or the connection ran out.
    std::string read(std::size_t n, milliseconds limit = patience);
    // What comes, until that text has come; everything, when it does not within `limit`.
    std::string read_until(std::string_view text, milliseconds limit = patience);

private:
    // False at the end of the connection or of the time.
    bool read_some(steady::time_point deadline);

    int socket_ = -1;
    std::string received_;
    bool ended_ = false;
};

// One request, one answer. Throws std::runtime_error when there is none.
http_answer http_request(std::uint16_t port, std::string const& target, headers const& extra = {},
                         std::string const& method = "GET", milliseconds limit = patience);

// The head of a request for an upgrade to WebSocket (RFC 6455 4.1).
std::string upgrade_request(std::uint16_t port, std::string const& target,
                            headers const& extra = {});
// One frame as a client sends it (RFC 6455 5.2), masked with zeros. Opcodes: 0 continuation, 1
// text, 9 ping, 10 pong.
std::string client_frame(unsigned opcode, std::string_view payload, bool is_final = true);
// What an upgrade is answered with.
http_answer try_upgrade(std::uint16_t port, std::string const& target, headers const& extra = {},
                        char const* from = nullptr);

} // namespace presenced::tests
