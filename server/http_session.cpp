#include "server/http_session.hpp"

#include "protocol/credentials.hpp"
#include "protocol/origin.hpp"
#include "protocol/subprotocol.hpp"
#include "server/client_info.hpp"
#include "server/forwarded.hpp"
#include "server/log.hpp"
#include "server/shard.hpp"
#include "server/websocket_factory.hpp"

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <boost/beast/websocket/rfc6455.hpp>
#include <openssl/sha.h>
#include <spdlog/spdlog.h>

#include <array>
#include <atomic>
#include <exception>
#include <optional>
#include <utility>

namespace presenced::server {

namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using namespace std::chrono_literals;

constexpr auto request_limit = 10s;        // for a request to be complete
constexpr auto lookup_limit = 5s;          // for the database to know a token
constexpr auto goodbye_limit = 2s;         // for the peer to read an error and close
constexpr unsigned refusals_a_second = 10; // in the log, of each kind
constexpr std::uint32_t header_limit = 16 * 1024;

using response = http::response<http::string_body>;

std::string_view view(beast::string_view s) {
    return {s.data(), s.size()};
}

// A list that a request may spread over several fields of one name (RFC 9110 section 5.3).
template <class Name>
std::string list_of(http_request const& request, Name name) {
    std::string list;
    auto const [first, last] = request.equal_range(name);
    for (auto it = first; it != last; ++it) {
        list += list.empty() ? "" : ", ";
        list += view(it->value());
    }
    return list;
}

// What a peer sent, for the log: quoted where it could pass for something else, and cut.
std::string shown(std::string_view text) {
    return log_value(text.substr(0, 200));
}

db::token_digest digest_of(std::string_view text) {
    db::token_digest digest;
    SHA256(reinterpret_cast<unsigned char const*>(text.data()), text.size(), digest.data());
    return digest;
}

class session final : public http_session,
                      public std::enable_shared_from_this<session>,
                      private wheel::entry {
public:
    session(shard& home, tcp_socket socket)
        : shard_{home}
        , socket_{std::move(socket)} {}

    ~session() { shard_.forget_http(*this); }

    void start() {
        error_code ec;
        auto const peer = socket_.remote_endpoint(ec);
        if (ec) {
            return; // it is gone already
        }
        peer_ = peer.address();
        // Or every small frame waits 40 ms for an acknowledgement (Nagle and delayed ACK).
        socket_.set_option(tcp::no_delay{true}, ec);
        read();
    }

    void on_token(db::token_answer const& answer) override;

    void drop() override {
        timers().cancel(*this);
        error_code ignored; // it is being thrown away
        socket_.close(ignored);
    }

    bool is_expendable() const override { return lookup_ == 0; }

private:
    void read() {
        parser_.emplace();
        head_ = false;
        timed_out_ = false;
        parser_->header_limit(header_limit);
        reading_ = true;
        timers().schedule(*this, wheel::clock::now() + request_limit);
        http::async_read(socket_, buffer_, *parser_,
                         [self = shared_from_this()](error_code ec, std::size_t) {
                             self->reading_ = false;
                             self->timers().cancel(*self);
                             self->on_read(ec);
                         });
    }

    void on_read(error_code ec) {
        if (!ec) {
            route(parser_->release());
        } else if (timed_out_ && answered_ && buffer_.size() == 0 && !parser_->got_some()) {
            drop(); // an idle keep-alive connection; nobody waits for an answer
        } else if (timed_out_) {
            shared().figures.limited("request_timeout");
            refuse(http::status::request_timeout, "The request took too long.");
        } else if (ec == http::error::header_limit) {
            shared().figures.limited("header_size");
            refuse(http::status::request_header_fields_too_large, "The headers are too large.");
        } else if (ec == http::error::end_of_stream ||
                   ec.category() == asio::error::get_system_category() ||
                   ec.category() == asio::error::get_misc_category()) {
            drop(); // the peer left
        } else {
            refuse(http::status::bad_request, "This is not an HTTP request: " + ec.message() + ".");
        }
    }

    void on_deadline(wheel::clock::time_point) override {
        // Nobody else keeps this session while it waits for the database.
        auto const self = shared_from_this();
        try {
            give_up_waiting();
        } catch (std::exception const& failure) {
            // For want of memory, say. It has no deadline any more.
            drop();
            spdlog::error("http deadline failed, dropped address={} why=\"{}\"", peer_.to_string(),
                          failure.what());
        }
    }

    void give_up_waiting() {
        if (lookup_ != 0) {
            shard_.forget_lookup(std::exchange(lookup_, 0));
            shared().figures.auth_failed(auth_failure::unavailable);
            unavailable("The database did not answer in time.");
        } else if (reading_) {
            // The read ends with operation_aborted, and then the answer is written.
            timed_out_ = true;
            error_code ignored; // a read that has ended needs no cancelling
            socket_.cancel(ignored);
        } else {
            drop();
        }
    }

    void route(http_request request) {
        auto const target = view(request.target());
        auto const path = target.substr(0, target.find('?'));
        keep_alive_ = request.keep_alive();
        head_ = request.method() == http::verb::head;
        if (path == shared().settings.path) {
            upgrade(std::move(request));
        } else if (request.method() != http::verb::get && !head_) {
            refuse(http::status::not_found, "Page not found");
        } else if (path == "/healthz") {
            answer(http::status::ok, "ok\n");
        } else if (path == "/readyz") {
            auto const problem = shared().why_not_ready();
            if (problem.empty()) {
                answer(http::status::ok, "ready\n");
            } else {
                answer(http::status::service_unavailable, "not ready: " + problem + "\n");
            }
        } else if (path == "/metrics") {
            auto* store = shared().store.load();
            answer(http::status::ok,
                   shared().figures.exposition(store ? store->health() : db::store_health{},
                                               shared().why_not_ready().empty()),
                   "text/plain; version=0.0.4; charset=utf-8");
        } else if (beast::websocket::is_upgrade(request)) {
            find_peer(request);
            page_not_found("no cable at this path", view(request[http::field::origin]), request,
                           "connect to " + shared().settings.path + " (PRESENCED_PATH)");
        } else {
            answer(http::status::not_found, "Page not found\n");
        }
    }

    // For whom the request is, and by which name it asks for this server.
    void find_peer(http_request const& request) {
        // haproxy puts its entry into a field of its own, behind what the client sent.
        auto from = find_origin(
            peer_, view(request[http::field::host]), list_of(request, "X-Forwarded-For"),
            list_of(request, "X-Forwarded-Host"), shared().settings.trusted_proxies);
        address_ = std::move(from.address);
        host_ = std::move(from.host);
    }

    void upgrade(http_request request);
    // Upgrades: `facts` say to what.
    void accept(client_info facts);

    void page_not_found(std::string_view why, std::string_view origin, http_request const& request,
                        std::string_view cure) {
        auto const target = view(request.target());
        // A query that was joined or escaped wrongly is a query still, and may hold a token.
        auto const path = target.substr(0, target.find_first_of("?&;=%#"));
        static thread_local line_limit limit{refusals_a_second};
        if (auto const more = limit.admit()) {
            spdlog::warn("http upgrade refused status=404 why=\"{}\" path={} origin={} host={} "
                         "http={}.{} address={} cure=\"{}\"{}",
                         why, shown(path), shown(origin), shown(host_), request.version() / 10,
                         request.version() % 10, address_, cure, *more);
        }
        refuse(http::status::not_found, "Page not found");
    }

    void unavailable(std::string text) {
        retry_after_ = 5s;
        refuse(http::status::service_unavailable, std::move(text));
    }

    // Answers and closes.
    void refuse(http::status status, std::string text) {
        keep_alive_ = false;
        answer(status, std::move(text) + "\n");
    }

    void answer(http::status status, std::string text,
                std::string_view type = "text/plain; charset=utf-8") {
        auto message = std::make_shared<response>(status, 11);
        message->set(http::field::server, "presenced");
        message->set(http::field::content_type, beast::string_view{type.data(), type.size()});
        message->set(http::field::cache_control, "no-store");
        if (retry_after_) {
            message->set(http::field::retry_after, std::to_string(retry_after_->count()));
        }
        message->keep_alive(keep_alive_);
        auto const size = text.size();
        if (head_) {
            message->content_length(size);
        } else {
            message->body() = std::move(text);
            message->prepare_payload();
        }
        shared().figures.http_answered(static_cast<unsigned>(status));
        timers().schedule(*this, wheel::clock::now() + request_limit);
        auto& sent = *message;
        http::async_write(socket_, sent,
                          [self = shared_from_this(), message](error_code ec, std::size_t) {
                              self->timers().cancel(*self);
                              self->on_answered(ec);
                          });
    }

    void on_answered(error_code ec) {
        if (ec) {
            drop();
        } else if (keep_alive_) {
            answered_ = true;
            read();
        } else {
            // Closing with unread input would reset the connection, and the peer might lose the
            // answer: read on for a moment.
            socket_.shutdown(tcp::socket::shutdown_send, ec);
            timers().schedule(*this, wheel::clock::now() + goodbye_limit);
            discard();
        }
    }

    void discard() {
        buffer_.clear();
        auto room = buffer_.prepare(4096);
        socket_.async_read_some(room, [self = shared_from_this()](error_code ec, std::size_t) {
            if (ec) {
                self->drop();
            } else {
                self->discard();
            }
        });
    }

    node& shared() { return shard_.shared(); }
    wheel& timers() { return shard_.timers(); }

    shard& shard_;
    tcp_socket socket_;
    asio::ip::address peer_;
    beast::flat_buffer buffer_;
    std::optional<http::request_parser<http::empty_body>> parser_;
    bool reading_ = false;
    bool timed_out_ = false;
    bool keep_alive_ = false;
    bool head_ = false;
    bool answered_ = false; // at least one request
    std::optional<std::chrono::seconds> retry_after_;

    // While an upgrade waits for its token to be looked up.
    std::optional<http_request> request_;
    std::string address_;
    std::string host_;
    client_info facts_;
    db::token_digest digest_{};
    std::uint64_t lookup_ = 0;
};

void session::upgrade(http_request request) {
    auto const& settings = shared().settings;
    auto const origin = request.find(http::field::origin);
    auto const has_origin = origin != request.end();
    auto const origin_text = has_origin ? view(origin->value()) : std::string_view{};
    find_peer(request);

    if (!beast::websocket::is_upgrade(request)) {
        page_not_found("no WebSocket upgrade", origin_text, request,
                       "connect with a WebSocket client; a proxy in front must speak HTTP/1.1 and "
                       "pass the Upgrade and Connection headers on");
        return;
    }
    if (!protocol::is_origin_allowed(has_origin ? std::optional{origin_text} : std::nullopt, host_,
                                     settings.allowed_origins)) {
        shared().figures.auth_failed(auth_failure::bad_origin);
        auto const cure = protocol::pattern_for_origin(origin_text);
        page_not_found("origin not allowed", origin_text, request,
                       cure ? "let the proxy pass the Host header on, or add " + *cure +
                                  " to PRESENCED_ALLOWED_ORIGINS"
                            : "this Origin is none that a page can have; send none, or "
                              "scheme://host");
        return;
    }
    switch (shared().phase.load()) {
    case node_phase::starting:
        unavailable("This node is starting.");
        return;
    case node_phase::draining:
        retry_after_ = 1s;
        refuse(http::status::service_unavailable, "This node is going away.");
        return;
    case node_phase::serving:
    case node_phase::leaving:
        break;
    }
    auto admitted = shared().admission_control.admit(address_);
    if (!admitted.ticket) {
        auto const full = admitted.why == admission::refusal::full;
        shared().figures.limited(full ? "connections" : "address");
        unavailable(full ? "This node is full."
                         : "There are too many connections from this address.");
        return;
    }
    static std::atomic<std::uint64_t> counter{0};
    facts_.number = ++counter;
    facts_.ticket = std::move(*admitted.ticket);

    auto const token =
        protocol::find_token(view(request.target()), view(request[http::field::authorization]));
    request_.emplace(std::move(request));
    if (!token) {
        digest_ = digest_of("no token, from " + address_);
        on_token({0, db::token_outcome::unknown, 0, 0, std::nullopt});
        return;
    }
    digest_ = digest_of(*token);
    lookup_ = shard_.authenticate(digest_, shared_from_this());
    timers().schedule(*this, wheel::clock::now() + lookup_limit);
}

void session::on_token(db::token_answer const& answer) {
    lookup_ = 0;
    timers().cancel(*this);
    if (shared().phase.load() == node_phase::draining) {
        facts_ = {};
        retry_after_ = 1s;
        refuse(http::status::service_unavailable, "This node is going away.");
        return;
    }
    if (answer.outcome == db::token_outcome::valid) {
        facts_.authorized = true;
        facts_.token = answer.id;
        facts_.owner = answer.owner;
        if (answer.expires_in) {
            facts_.expires_at = wheel::clock::now() + *answer.expires_in;
        }
        accept(std::move(facts_));
        return;
    }
    if (answer.outcome == db::token_outcome::unavailable) {
        facts_ = {};
        shared().figures.auth_failed(auth_failure::unavailable);
        unavailable("The database did not answer in time.");
        return;
    }
    auto const now = wheel::clock::now();
    if (auto const wait = shared().admission_control.turned_away(digest_, now)) {
        shared().figures.auth_failed(auth_failure::repeated_token);
        retry_after_ = *wait;
        facts_ = {};
        refuse(http::status::too_many_requests,
               "This token was refused three times within a minute.");
        return;
    }
    auto const cause = answer.outcome == db::token_outcome::expired   ? auth_failure::expired_token
                       : answer.outcome == db::token_outcome::revoked ? auth_failure::revoked_token
                       : answer.key == 0                              ? auth_failure::no_token
                                                                      : auth_failure::unknown_token;
    shared().figures.auth_failed(cause);
    static thread_local line_limit limit{refusals_a_second};
    if (auto const more = limit.admit()) {
        std::string const whose = answer.id == 0 ? std::string{}
                                                 : " token=" + std::to_string(answer.id) +
                                                       " owner=" + std::to_string(answer.owner);
        spdlog::info("http token refused conn={} address={} cause={}{}{}", facts_.number, address_,
                     cause == auth_failure::no_token        ? "none"
                     : cause == auth_failure::expired_token ? "expired"
                     : cause == auth_failure::revoked_token ? "revoked"
                                                            : "unknown",
                     whose, *more);
    }
    accept(std::move(facts_));
}

void session::accept(client_info facts) {
    auto const offered = list_of(*request_, http::field::sec_websocket_protocol);
    auto const subprotocol = protocol::choose_subprotocol(offered);
    shard_.open_cable(make_websocket(std::move(socket_), std::move(*request_), subprotocol),
                      std::move(facts));
}

} // namespace

void start_http(shard& home, tcp_socket socket) {
    auto const s = std::make_shared<session>(home, std::move(socket));
    home.keep_http(*s);
    s->start();
}

} // namespace presenced::server
