#include "tests/support/raw_http.hpp"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <stdexcept>
#include <system_error>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace presenced::tests {

namespace {

[[noreturn]] void fail(char const* what) {
    throw std::system_error{errno, std::system_category(), what};
}

sockaddr_in address_of(char const* host, std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    inet_pton(AF_INET, host, &address.sin_addr);
    return address;
}

std::size_t parse_number(std::string_view text) {
    std::size_t n = 0;
    std::from_chars(text.data(), text.data() + text.size(), n);
    return n;
}

http_answer parse_head(std::string_view head) {
    http_answer answer;
    answer.status = static_cast<unsigned>(parse_number(head.substr(head.find(' ') + 1)));
    for (auto at = head.find("\r\n"); at != head.npos;) {
        auto const next = head.find("\r\n", at + 2);
        auto const line = head.substr(at + 2, next == head.npos ? head.npos : next - at - 2);
        if (auto const colon = line.find(':'); colon != line.npos) {
            std::string name{line.substr(0, colon)};
            std::transform(name.begin(), name.end(), name.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
            auto value = line.substr(colon + 1);
            value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
            answer.headers.emplace(std::move(name), value);
        }
        at = next;
    }
    return answer;
}

} // namespace

raw_connection::raw_connection(std::uint16_t port, char const* from, buffers sizes)
    : socket_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
    if (socket_ < 0) {
        fail("socket");
    }
    for (auto const& [option, size] :
         {std::pair{SO_SNDBUF, sizes.sending}, std::pair{SO_RCVBUF, sizes.receiving}}) {
        if (size != 0) {
            setsockopt(socket_, SOL_SOCKET, option, &size, sizeof size);
        }
    }
    if (from != nullptr) {
        auto const own = address_of(from, 0);
        if (bind(socket_, reinterpret_cast<sockaddr const*>(&own), sizeof own) != 0) {
            fail("bind");
        }
    }
    auto const peer = address_of("127.0.0.1", port);
    if (connect(socket_, reinterpret_cast<sockaddr const*>(&peer), sizeof peer) != 0) {
        auto const error = errno;
        close(socket_);
        errno = error;
        fail("connect");
    }
}

raw_connection::~raw_connection() {
    close(socket_);
}

void raw_connection::send(std::string_view bytes) const {
    while (!bytes.empty()) {
        auto const n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (n < 0) {
            fail("send");
        }
        bytes.remove_prefix(static_cast<std::size_t>(n));
    }
}

std::optional<std::size_t> raw_connection::send_some(std::string_view bytes) const {
    auto const n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
        return static_cast<std::size_t>(n);
    }
    return errno == EAGAIN ? std::optional<std::size_t>{0} : std::nullopt;
}

bool raw_connection::read_some(steady::time_point deadline) {
    if (ended_) {
        return false;
    }
    pollfd readable{socket_, POLLIN, 0};
    auto const left = std::chrono::ceil<milliseconds>(deadline - steady::now()).count();
    if (poll(&readable, 1, static_cast<int>(std::max<std::int64_t>(left, 0))) <= 0) {
        return false;
    }
    char part[16 * 1024];
    auto const n = recv(socket_, part, sizeof part, 0);
    if (n <= 0) {
        ended_ = true;
        return false;
    }
    received_.append(part, static_cast<std::size_t>(n));
    return true;
}

std::optional<http_answer> raw_connection::answer(milliseconds limit) {
    auto const deadline = steady::now() + limit;
    auto end = received_.npos;
    while ((end = received_.find("\r\n\r\n")) == received_.npos) {
        if (!read_some(deadline)) {
            return std::nullopt;
        }
    }
    auto answer = parse_head(std::string_view{received_}.substr(0, end));
    received_.erase(0, end + 4);
    auto const length = parse_number(answer.header("content-length"));
    while (received_.size() < length) {
        if (!read_some(deadline)) {
            return std::nullopt;
        }
    }
    answer.body = received_.substr(0, length);
    received_.erase(0, length);
    return answer;
}

bool raw_connection::ended(milliseconds limit) {
    auto const deadline = steady::now() + limit;
    while (read_some(deadline)) {
    }
    return ended_;
}

std::string raw_connection::read(std::size_t n, milliseconds limit) {
    auto const deadline = steady::now() + limit;
    while (received_.size() < n && read_some(deadline)) {
    }
    return std::exchange(received_, {});
}

std::string raw_connection::read_until(std::string_view text, milliseconds limit) {
    auto const deadline = steady::now() + limit;
    while (received_.find(text) == received_.npos && read_some(deadline)) {
    }
    return std::exchange(received_, {});
}

std::string client_frame(unsigned opcode, std::string_view payload, bool is_final) {
    std::string frame;
    auto const add = [&](std::size_t byte) {
        frame += static_cast<char>(static_cast<unsigned char>(byte));
    };
    auto const size = payload.size();
    add((is_final ? 0x80U : 0U) | opcode);
    if (size < 126) {
        add(0x80U | size);
    } else if (size < 65'536) {
        add(0x80U | 126U);
        add(size >> 8U);
        add(size & 0xFFU);
    } else {
        add(0x80U | 127U);
        for (auto shift = 56; shift >= 0; shift -= 8) {
            add(size >> static_cast<unsigned>(shift) & 0xFFU);
        }
    }
    return frame.append(4, '\0').append(payload);
}

namespace {

std::string head_of(std::uint16_t port, std::string const& method, std::string const& target,
                    headers const& extra) {
    auto const has_host = std::any_of(extra.begin(), extra.end(),
                                      [](auto const& header) { return header.first == "Host"; });
    auto head = method + " " + target + " HTTP/1.1\r\n";
    if (!has_host) {
        head += "Host: 127.0.0.1:" + std::to_string(port) + "\r\n";
    }
    for (auto const& [name, value] : extra) {
        head += name + ": " + value + "\r\n";
    }
    return head;
}

} // namespace

http_answer http_request(std::uint16_t port, std::string const& target, headers const& extra,
                         std::string const& method, milliseconds limit) {
    raw_connection connection{port};
    connection.send(head_of(port, method, target, extra) + "Connection: close\r\n\r\n");
    auto answer = connection.answer(limit);
    if (!answer) {
        throw std::runtime_error{method + " " + target + ": no answer"};
    }
    return *answer;
}

std::string upgrade_request(std::uint16_t port, std::string const& target, headers const& extra) {
    return head_of(port, "GET", target, extra) +
           "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
}

http_answer try_upgrade(std::uint16_t port, std::string const& target, headers const& extra,
                        char const* from) {
    raw_connection connection{port, from};
    connection.send(upgrade_request(port, target, extra));
    auto answer = connection.answer();
    if (!answer) {
        throw std::runtime_error{"upgrade of " + target + ": no answer"};
    }
    return *answer;
}

} // namespace presenced::tests
