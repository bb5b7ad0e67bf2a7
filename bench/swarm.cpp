#include "bench/swarm.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace presenced::bench {

namespace {

// One source address has 28,000 ports for one destination, and the kernel's search for a free one
// gets slow long before that.
constexpr std::size_t addresses = 16;
constexpr unsigned text_frame = 1;
constexpr unsigned close_frame = 8;
constexpr unsigned ping_frame = 9;
constexpr unsigned pong_frame = 10;

sockaddr_in ipv4(std::string const& host, std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1) {
        throw std::invalid_argument{host + " is not an IPv4 address"};
    }
    return address;
}

std::system_error os_error(char const* what) {
    return {errno, std::system_category(), what};
}

bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != text.npos;
}

} // namespace

target target::parse(std::string const& url) {
    std::string_view rest{url};
    for (auto const scheme : {"ws://", "http://"}) {
        if (rest.starts_with(scheme)) {
            rest.remove_prefix(std::strlen(scheme));
            break;
        }
    }
    auto const slash = std::min(rest.find('/'), rest.size());
    auto const authority = rest.substr(0, slash);
    auto const colon = authority.find(':');
    target to{std::string{authority.substr(0, colon)}, 0,
              slash < rest.size() ? std::string{rest.substr(slash)} : "/cable"};
    auto const port = colon == authority.npos ? "" : authority.substr(colon + 1);
    if (std::from_chars(port.data(), port.data() + port.size(), to.port).ec != std::errc{}) {
        throw std::invalid_argument{url + ": no port; like ws://127.0.0.1:8080/cable"};
    }
    if (!to.host.starts_with("127.")) {
        throw std::invalid_argument{url + ": the driver loads loopback addresses (127.x) only"};
    }
    return to;
}

swarm::swarm(target to, std::vector<identity> identities, std::size_t size, swarm_limits limits)
    : to_{std::move(to)}
    , identities_{std::move(identities)}
    , limits_{limits}
    , sessions_(size) {
    epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ < 0) {
        throw os_error("epoll_create1");
    }
    milliseconds_.reserve(size);
    confirmed_at_.reserve(size);
    scratch_.resize(64 * 1024);
}

swarm::~swarm() {
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
        kill(i);
    }
    ::close(epoll_);
}

void swarm::move(session& s, phase to) {
    counts_.upgrading -= s.at == phase::upgrading ? 1 : 0;
    counts_.confirmed -= s.at == phase::confirmed ? 1 : 0;
    s.at = to;
    counts_.upgrading += s.at == phase::upgrading ? 1 : 0;
    counts_.confirmed += s.at == phase::confirmed ? 1 : 0;
}

void swarm::start(std::size_t i) {
    queued_.push_back(i);
    start_queued();
}

void swarm::start_queued() {
    if (std::exchange(starting_, true)) {
        return; // one of those below has failed at once
    }
    while (first_queued_ < queued_.size() && counts_.upgrading < limits_.upgrading) {
        connect(queued_[first_queued_++]);
    }
    if (first_queued_ == queued_.size()) {
        queued_.clear();
        first_queued_ = 0;
    }
    starting_ = false;
}

void swarm::connect(std::size_t i) {
    auto& s = sessions_[i];
    s = session{};
    s.since = steady::now();
    move(s, phase::upgrading);
    s.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s.fd < 0) {
        throw os_error("socket");
    }
    int const on = 1;
    ::setsockopt(s.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    // The port is left to connect(), which takes any that is free for this destination.
    ::setsockopt(s.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    auto const from = ipv4("127.0.0." + std::to_string(2 + i % addresses), 0);
    if (::bind(s.fd, reinterpret_cast<sockaddr const*>(&from), sizeof from) != 0) {
        throw os_error("bind");
    }
    auto const to = ipv4(to_.host, to_.port);
    if (::connect(s.fd, reinterpret_cast<sockaddr const*>(&to), sizeof to) != 0 &&
        errno != EINPROGRESS) {
        fail(i, std::strerror(errno));
        return;
    }
    // Edge-triggered: one call a session and no more.
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.u64 = i;
    if (::epoll_ctl(epoll_, EPOLL_CTL_ADD, s.fd, &event) != 0) {
        throw os_error("epoll_ctl");
    }
}

void swarm::unsubscribe(std::size_t i) {
    auto& s = sessions_[i];
    move(s, phase::left);
    auto const& who = identities_[i % identities_.size()];
    send_frame(i, text_frame,
               R"({"command":"unsubscribe","identifier":"{\"channel\":\"AgentChannel\",)"
               R"(\"agent_id\":)" +
                   who.agent + R"(}"})");
}

void swarm::close(std::size_t i) {
    auto& s = sessions_[i];
    if (s.fd >= 0) {
        s.closing = true;
        move(s, phase::idle);
        send_frame(i, close_frame, std::string_view{"\x03\xe8", 2}); // 1000
    }
}

void swarm::kill(std::size_t i) {
    auto& s = sessions_[i];
    if (s.fd >= 0) {
        linger const reset{1, 0};
        ::setsockopt(s.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        end(s);
        move(s, phase::idle);
    }
}

void swarm::end(session& s) {
    ::close(s.fd);
    s.fd = -1;
    s.rest = {};
}

void swarm::fail(std::size_t i, std::string_view why) {
    auto& s = sessions_[i];
    end(s);
    if (s.closing) { // it was asked to go
        move(s, phase::idle);
        return;
    }
    move(s, phase::failed);
    ++counts_.failed;
    auto const known = std::find_if(failures_.begin(), failures_.end(),
                                    [&](auto const& f) { return f.first == why; });
    if (known != failures_.end()) {
        ++known->second;
    } else {
        failures_.emplace_back(why, 1);
    }
    start_queued();
}

void swarm::expire(steady::time_point now) {
    next_expiry_ = now + std::chrono::seconds{1};
    for (std::size_t i = 0; i < sessions_.size(); ++i) {
        auto const& s = sessions_[i];
        auto const waits = s.at == phase::upgrading || s.at == phase::opened;
        if (waits && now - s.since > limits_.session) {
            fail(i, "too late");
        }
    }
}

bool swarm::run(std::function<bool()> const& done, steady::time_point until) {
    std::array<epoll_event, 256> ready;
    while (!done()) {
        auto const now = steady::now();
        if (now >= until) {
            return false;
        }
        if (now >= next_expiry_) {
            expire(now);
        }
        auto const wait =
            std::chrono::ceil<std::chrono::milliseconds>(std::min(until, next_expiry_) - now);
        auto const n = ::epoll_wait(epoll_, ready.data(), static_cast<int>(ready.size()),
                                    static_cast<int>(wait.count()));
        if (n < 0 && errno != EINTR) {
            throw os_error("epoll_wait");
        }
        for (int e = 0; e < n; ++e) {
            auto const& event = ready[static_cast<std::size_t>(e)];
            on_ready(event.data.u64, event.events);
        }
    }
    return true;
}

void swarm::on_ready(std::size_t i, std::uint32_t events) {
    auto& s = sessions_[i];
    if (s.fd < 0) {
        return; // it ended while its event was on its way
    }
    if (!s.requested && (events & EPOLLOUT) != 0) {
        s.requested = true;
        // A fixed key: what the server makes of it is the same work whatever it is.
        send(i, "GET " + to_.path + "?token=" + identities_[i % identities_.size()].token +
                    " HTTP/1.1\r\nHost: " + to_.host + ":" + std::to_string(to_.port) +
                    "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                    "Sec-WebSocket-Protocol: actioncable-v1-json, actioncable-unsupported\r\n"
                    "Origin: http://" +
                    to_.host + ":" + std::to_string(to_.port) + "\r\n\r\n");
    }
    auto const gone = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    if ((events & EPOLLIN) == 0 && !gone) {
        return;
    }
    for (;;) {
        auto const n = ::recv(s.fd, scratch_.data(), scratch_.size(), 0);
        if (n > 0) {
            on_bytes(i, {scratch_.data(), static_cast<std::size_t>(n)});
            if (s.fd < 0 || (static_cast<std::size_t>(n) < scratch_.size() && !gone)) {
                return; // there was no more; an end of file has an event of its own
            }
        } else if (n == 0) {
            fail(i, s.upgraded ? "closed by the server" : "closed before the upgrade");
            return;
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            fail(i, std::strerror(errno));
            return;
        }
    }
}

void swarm::on_bytes(std::size_t i, std::string_view bytes) {
    auto& s = sessions_[i];
    std::string whole;
    if (!s.rest.empty()) {
        whole = std::exchange(s.rest, {});
        whole += bytes;
        bytes = whole;
    }
    while (!bytes.empty()) {
        auto const used = s.upgraded ? on_frame(i, bytes) : on_response(i, bytes);
        if (s.fd < 0) {
            return;
        }
        if (used == 0) {
            s.rest = bytes;
            return;
        }
        bytes.remove_prefix(used);
    }
}

std::size_t swarm::on_response(std::size_t i, std::string_view bytes) {
    auto const end = bytes.find("\r\n\r\n");
    if (end == bytes.npos) {
        return 0;
    }
    if (!bytes.starts_with("HTTP/1.1 101")) {
        fail(i, "status " + std::string{bytes.substr(std::min<std::size_t>(9, end), 3)});
        return 0;
    }
    sessions_[i].upgraded = true;
    move(sessions_[i], phase::opened);
    start_queued();
    return end + 4;
}

std::size_t swarm::on_frame(std::size_t i, std::string_view bytes) {
    auto const at = [&](std::size_t n) {
        return static_cast<unsigned char>(bytes[n]);
    };
    if (bytes.size() < 2) {
        return 0;
    }
    auto const opcode = at(0) & 15U;
    std::size_t length = at(1) & 127U;
    std::size_t head = 2;
    if (length == 126) {
        if (bytes.size() < 4) {
            return 0;
        }
        length = static_cast<std::size_t>(at(2)) << 8U | at(3);
        head = 4;
    } else if (length == 127) {
        fail(i, "a frame of more than 64 KiB");
        return 0;
    }
    if (bytes.size() < head + length) {
        return 0;
    }
    auto const payload = bytes.substr(head, length);
    if (opcode == text_frame) {
        on_text(i, payload);
    } else if (opcode == ping_frame) {
        ++counts_.native_pings;
        send_frame(i, pong_frame, payload);
    } else if (opcode == close_frame) {
        if (!sessions_[i].closing) {
            send_frame(i, close_frame, payload.substr(0, 2));
        }
        // Whoever accepted closes first, so that the time-wait state is the server's.
    }
    return head + length;
}

void swarm::on_text(std::size_t i, std::string_view text) {
    auto& s = sessions_[i];
    if (contains(text, R"("type":"ping")")) {
        ++counts_.pings;
    } else if (contains(text, R"("type":"welcome")")) {
        send_frame(i, text_frame,
                   R"({"command":"subscribe","identifier":"{\"channel\":\"AgentChannel\",)"
                   R"(\"agent_id\":)" +
                       identities_[i % identities_.size()].agent + R"(}"})");
    } else if (contains(text, R"("type":"confirm_subscription")")) {
        auto const now = steady::now();
        move(s, phase::confirmed);
        milliseconds_.push_back(std::chrono::duration<double, std::milli>(now - s.since).count());
        confirmed_at_.push_back(now);
    } else if (contains(text, R"("type":"reject_subscription")")) {
        fail(i, "rejected");
    } else if (contains(text, R"("type":"disconnect")")) {
        auto const from = text.find(R"("reason":")");
        auto const reason = from == text.npos ? "" : text.substr(from + 10);
        fail(i, "disconnect " + std::string{reason.substr(0, reason.find('"'))});
    }
}

void swarm::send_frame(std::size_t i, unsigned opcode, std::string_view payload) {
    std::string frame;
    frame.reserve(payload.size() + 8);
    frame += static_cast<char>(0x80U | opcode);
    if (payload.size() < 126) {
        frame += static_cast<char>(0x80U | payload.size());
    } else {
        frame += static_cast<char>(0x80U | 126U);
        frame += static_cast<char>(payload.size() >> 8U);
        frame += static_cast<char>(payload.size() & 255U);
    }
    frame.append(4, '\0');
    frame += payload;
    send(i, frame);
}

// A session has at most a few hundred bytes under way, so the kernel takes them whole.
void swarm::send(std::size_t i, std::string_view bytes) {
    auto& s = sessions_[i];
    if (s.fd >= 0 && ::send(s.fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) !=
                         static_cast<ssize_t>(bytes.size())) {
        fail(i, std::strerror(errno));
    }
}

void swarm::forget_times() {
    milliseconds_.clear();
    confirmed_at_.clear();
}

} // namespace presenced::bench
