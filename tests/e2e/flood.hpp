// Attackers that send more than is good.
#pragma once

#include "tests/support/catch.hpp"
#include "tests/support/eventually.hpp"
#include "tests/support/raw_http.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace presenced::tests {

inline std::string framed(std::string const& name, std::string const& identifier) {
    return client_frame(1, command(name, identifier));
}

inline std::string repeated(std::string const& text, std::size_t count) {
    std::string all;
    for (std::size_t i = 0; i < count; ++i) {
        all += text;
    }
    return all;
}

// WebSockets that send the same bytes over and over, as fast as they are taken.
class flood {
public:
    flood(world const& w, node const& n, std::size_t size, std::string bytes)
        : bytes_{std::move(bytes)} {
        for (std::size_t i = 0; i < size; ++i) {
            auto& one = clients_.emplace_back(n.port());
            one.socket.send(upgrade_request(n.port(), "/cable?token=" + w.token()));
            REQUIRE(one.socket.answer().value().status == 101);
        }
    }

    // Without reading they are slow readers: what the node answers stays with it.
    void run(milliseconds span, bool with_reading = true) {
        for (auto const end = steady::now() + span; steady::now() < end;) {
            auto moved = false;
            for (auto& one : clients_) {
                moved = send(one) || moved;
                if (with_reading) {
                    one.socket.read(1, 0ms);
                }
            }
            if (!moved) {
                std::this_thread::sleep_for(1ms); // all buffers are full; the next try is the poll
            }
        }
    }

    // How many still get an answer, once everything has been read that they sent.
    std::size_t answered() {
        std::size_t count = 0;
        // Rejected at once: who hears so has been read to the end.
        auto const last = framed("subscribe", R"({"channel":"NoSuchChannel"})");
        for (auto& one : clients_) {
            auto const rest = (one.at == 0 ? std::string{} : bytes_.substr(one.at)) + last;
            for (std::string_view left = rest; !left.empty();) {
                left.remove_prefix(one.socket.send_some(left).value_or(left.size()));
                one.heard += one.socket.read(1, 0ms);
            }
        }
        for (auto& one : clients_) {
            one.heard += one.socket.read_until("reject_subscription");
            count += one.heard.find("reject_subscription") != std::string::npos ? 1U : 0U;
        }
        return count;
    }

    std::size_t size() const { return clients_.size(); }

    // How many bytes the one sent that got rid of the most.
    double most_sent() const {
        auto const most = std::max_element(clients_.begin(), clients_.end(),
                                           [](auto& a, auto& b) { return a.sent < b.sent; });
        return static_cast<double>(most->sent);
    }

private:
    struct client {
        // Its kernel keeps for it what it keeps across a network; on loopback it would be
        // megabytes.
        explicit client(std::uint16_t port)
            : socket{port, nullptr, {64 * 1024, 0}} {}
        raw_connection socket;
        std::size_t at = 0; // in the bytes
        std::size_t sent = 0;
        std::string heard{};
    };

    bool send(client& one) {
        auto const n = one.socket.send_some(std::string_view{bytes_}.substr(one.at)).value_or(0);
        one.at = (one.at + n) % bytes_.size();
        one.sent += n;
        return n > 0;
    }

    std::string bytes_;
    std::deque<client> clients_;
};

} // namespace presenced::tests
