#include "server/app/listener.hpp"

#include "server/app/placement.hpp"
#include "server/app/shard.hpp"
#include "server/node/log.hpp"

#include <boost/asio/error.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <stdexcept>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

constexpr int backlog = 4096; // a reconnect storm arrives at once; the kernel may cap it
constexpr auto pause_after_error = 20ms;
// What the kernel keeps for a connection that is not read, and for one that does not read. Far less
// than it would take by itself (6 and 4 MiB), and enough for commands and confirmations; the kernel
// doubles it.
constexpr int socket_buffer = 64 * 1024;

// So many pings a second are little work for one shard: a hundredth of a core or so.
constexpr std::int64_t few_pings_a_second = 340;

bool is_family_missing(error_code ec) {
    return ec == asio::error::address_family_not_supported ||
           ec == boost::system::errc::address_not_available;
}

// An address of several that is not there. A machine without IPv6 has no [::1], and [::1] is among
// the default addresses; any other one was asked for.
void tell_passed_over(endpoint const& e, asio::ip::address const& address, error_code ec) {
    auto const level =
        address.is_v6() && address.is_loopback() ? spdlog::level::info : spdlog::level::warn;
    spdlog::log(level,
                "listener address passed over, nobody can connect there address={} why=\"{}\" "
                "cure=\"give this machine the address, or take it out of PRESENCED_LISTEN\"",
                to_string(e), ec.message());
}

// `[::]` takes IPv6 alone here, whatever net.ipv6.bindv6only says, so that a list of addresses
// means the same on every machine, and 0.0.0.0 can stand beside it.
void tell_what_takes_no_ipv4(std::span<endpoint const> where) {
    for (auto const& e : where) {
        auto const is_ipv4_too =
            std::any_of(where.begin(), where.end(), [&](endpoint const& other) {
                return other.address == "0.0.0.0" && other.port == e.port;
            });
        if (e.address == "::" && !is_ipv4_too) {
            auto const port = std::to_string(e.port);
            spdlog::info("listener takes IPv6 alone address={} cure=\"for IPv4 too: "
                         "PRESENCED_LISTEN=0.0.0.0:{},[::]:{}\"",
                         to_string(e), port, port);
        }
    }
}

} // namespace

listener::listener(asio::io_context& context, std::span<std::unique_ptr<shard> const> shards)
    : context_{context}
    , shards_{shards} {}

std::vector<std::string> listener::listen(std::span<endpoint const> where) {
    tell_what_takes_no_ipv4(where);
    std::vector<std::string> bound;
    error_code last;
    for (auto const& e : where) {
        auto const fail = [&](error_code ec) {
            throw std::runtime_error{
                "cannot listen on " + to_string(e) + ": " + ec.message() +
                (ec == asio::error::address_in_use
                     ? "; end what uses this port (perhaps another presenced) or set "
                       "PRESENCED_LISTEN to another one"
                     : "; set PRESENCED_LISTEN to an address of this machine")};
        };
        auto const address = asio::ip::make_address(e.address);
        tcp::endpoint const local{address, e.port};
        auto d = std::make_unique<open_address>(
            open_address{acceptor{context_.get_executor()}, asio::steady_timer{context_}});
        error_code ec;
        d->socket.open(local.protocol(), ec);
        if (!ec && address.is_v6()) {
            // So that 0.0.0.0 and [::] can stand side by side.
            d->socket.set_option(asio::ip::v6_only{true}, ec);
        }
        if (!ec) {
            // SO_REUSEADDR: a restart need not wait for old connections. Never SO_REUSEPORT: a
            // second process could bind the port unnoticed and take half of the clients.
            d->socket.set_option(acceptor::reuse_address{true}, ec);
        }
        if (!ec) {
            // Every accepted socket inherits these.
            d->socket.set_option(acceptor::receive_buffer_size{socket_buffer}, ec);
            d->socket.set_option(acceptor::send_buffer_size{socket_buffer}, ec);
            d->socket.bind(local, ec);
        }
        if (!ec) {
            d->socket.listen(backlog, ec);
        }
        if (is_family_missing(ec) && where.size() > 1) {
            tell_passed_over(e, address, ec);
            last = ec;
            continue;
        }
        if (ec) {
            fail(ec);
        }
        auto const port = d->socket.local_endpoint().port();
        bound.push_back(to_string(endpoint{e.address, port}));
        addresses_.push_back(std::move(d));
    }
    if (addresses_.empty()) {
        throw std::runtime_error{"cannot listen on any address: " + last.message() +
                                 "; set PRESENCED_LISTEN to an address of this machine"};
    }
    return bound;
}

void listener::start() {
    for (auto& d : addresses_) {
        accept(*d);
    }
}

void listener::stop() {
    for (auto& d : addresses_) {
        error_code ignored; // nothing is accepted any more either way
        d->socket.close(ignored);
        d->pause.cancel();
    }
}

void listener::accept(open_address& d) {
    auto& home = next_shard();
    d.socket.async_accept(home.context(), [this, &d, &home](error_code ec, tcp_socket socket) {
        if (ec == asio::error::operation_aborted) {
            return;
        }
        if (on_accepted(home, ec, std::move(socket))) {
            accept(d);
            return;
        }
        d.pause.expires_after(pause_after_error);
        d.pause.async_wait([this, &d](error_code cancelled) {
            if (!cancelled) {
                accept(d);
            }
        });
    });
}

// Returns whether the next one may be accepted at once. Descriptors or memory may have run out: the
// connection waits in the backlog, and trying again at once would only burn the processor.
bool listener::on_accepted(shard& home, error_code ec, tcp_socket socket) {
    std::string why;
    try {
        if (!ec) {
            home.adopt(std::move(socket));
            return true;
        }
        why = ec.message();
        if (ec == asio::error::no_descriptors ||
            ec == boost::system::errc::too_many_files_open_in_system) {
            home.shared().figures.limited("descriptors");
            for (auto const& s : shards_) {
                s->close_older_http();
            }
        }
    } catch (std::exception const& e) {
        why = e.what(); // accepting goes on, whatever became of this one
    }
    static line_limit limit{1};
    if (auto const more = limit.admit()) {
        spdlog::warn("listener accept failed, trying again why=\"{}\"{}", why, *more);
    }
    return false;
}

shard& listener::next_shard() const {
    auto const few = few_pings_a_second * shards_.front()->shared().timings.ping / 1s;
    return *shards_[place(shards_.size(), static_cast<std::size_t>(few),
                          [this](std::size_t i) { return shards_[i]->load(); })];
}

} // namespace presenced::server
