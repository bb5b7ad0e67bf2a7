#include "server/http/http_session.hpp"

#include "base/text.hpp"
#include "server/auth/client_info.hpp"
#include "server/cable/websocket_factory.hpp"
#include "server/http/http_exchange.hpp"
#include "server/http/http_host.hpp"
#include "server/http/request_head.hpp"
#include "server/http/router.hpp"
#include "server/node/log.hpp"

#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <exception>
#include <optional>
#include <utility>

namespace presenced::server {

namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using namespace std::chrono_literals;

constexpr auto request_limit = 10s;        // for a request to be complete, and for its answer
constexpr auto goodbye_limit = 2s;         // for the peer to read an error and close
constexpr unsigned refusals_a_second = 10; // in the log
constexpr std::size_t header_limit = 16 * 1024;
constexpr std::size_t read_size = 4 * 1024;
// Room for a head and the requests that are pipelined behind it, or for one chunk of a body.
constexpr std::size_t buffer_limit = 64 * 1024;

std::string_view view(beast::string_view s) {
    return {s.data(), s.size()};
}

// RFC 9112 section 9.3. Beast looks at the first Connection field alone.
bool wants_to_stay(http_request const& request) {
    return request.version() >= 11 ? !list_has(request, "Connection", "close")
                                   : list_has(request, "Connection", "keep-alive") &&
                                         !list_has(request, "Connection", "close");
}

// Beast's handshake looks at the first field of a name alone.
void join_lists(http_request& request) {
    for (auto const name : {http::field::connection, http::field::upgrade}) {
        if (request.count(name) > 1) {
            field_list const list{request, view(http::to_string(name))};
            request.set(name, beast::string_view{list.text().data(), list.text().size()});
        }
    }
}

class session final : public http_session,
                      public http_exchange,
                      public std::enable_shared_from_this<session>,
                      private wheel::entry {
public:
    session(http_host& home, tcp_socket socket)
        : home_{home}
        , socket_{std::move(socket)} {}

    ~session() override { home_.forget_http(*this); }

    void start() {
        error_code ec;
        auto const peer = socket_.remote_endpoint(ec);
        if (ec) {
            return; // it is gone already
        }
        peer_ = peer.address();
        // Or every small frame waits 40 ms for an acknowledgement (Nagle and delayed ACK).
        socket_.set_option(tcp::no_delay{true}, ec);
        begin_request();
    }

    // http_session
    void drop() override {
        timers().cancel(*this);
        error_code ignored; // it is being thrown away
        socket_.close(ignored);
    }
    bool is_expendable() const override { return what_ != doing::handling; }

    // http_exchange
    http_request const& request() const override { return request_; }
    std::vector<std::string> const& captured() const override { return route_.captured; }
    client_of_request client() const override;
    http_host& home() override { return home_; }
    void answer(http_answer what) override;
    void upgrade(std::string_view subprotocol, client_info facts) override;

private:
    // What a deadline ends.
    enum class doing : std::uint8_t { reading, handling, writing, leaving };

    void begin_request();
    void read_head();
    void on_head(std::string_view head);
    void prepare_request();
    bool is_body_refused();
    void begin_body();
    void read_body();
    void read_more();
    void on_bytes(error_code ec, std::size_t size);
    void on_read_failed(error_code ec);
    void handle();
    void refuse_request(request_problem const& problem);
    void on_answered(error_code ec);
    void discard();
    void on_deadline(wheel::clock::time_point) override;

    std::string_view received() const {
        auto const bytes = buffer_.data();
        return {static_cast<char const*>(bytes.data()), bytes.size()};
    }
    node& shared() const { return home_.shared(); }
    wheel& timers() { return home_.timers(); }
    void set_deadline(doing what, wheel::clock::duration limit) {
        what_ = what;
        timers().schedule(*this, wheel::clock::now() + limit);
    }

    http_host& home_;
    tcp_socket socket_;
    asio::ip::address peer_;
    beast::flat_buffer buffer_{buffer_limit};
    doing what_ = doing::reading;
    bool timed_out_ = false;
    bool has_answered_ = false; // at least one request

    // Of the request under way.
    head_scanner scanner_;
    std::optional<http::request_parser<http::string_body>> parser_;
    http_request request_;    // its head is what find_problem() saw
    std::string target_host_; // of an absolute target
    router::found route_;
    answered_request to_;
    std::string outgoing_;
};

// ---- Reading ------------------------------------------------------------------------------------

void session::begin_request() {
    scanner_ = {};
    parser_.reset();
    request_ = {};
    target_host_.clear();
    to_ = {};
    timed_out_ = false;
    set_deadline(doing::reading, request_limit);
    read_head();
}

void session::read_head() {
    auto const found = scanner_.scan(received());
    if (found == head_scanner::state::garbage) {
        refuse_request({400, "not_http", "This is not an HTTP/1 request."});
    } else if (found == head_scanner::state::complete && scanner_.end() <= header_limit) {
        on_head(received().substr(scanner_.begin(), scanner_.end() - scanner_.begin()));
    } else if (received().size() >= header_limit) {
        shared().figures.limited("header_size");
        answer(refuse(431, "The headers are too large."));
    } else {
        read_more();
    }
}

// The only place that reads a request. A composed read of Beast's would go on reading after the
// deadline: a deadline cancels nothing when it comes between two reads of the composed one.
void session::read_more() {
    if (timed_out_) {
        on_read_failed(asio::error::operation_aborted);
        return;
    }
    auto const room = buffer_.prepare(std::min(read_size, buffer_limit - buffer_.size()));
    socket_.async_read_some(room, [self = shared_from_this()](error_code ec, std::size_t size) {
        self->on_bytes(ec, size);
    });
}

void session::on_bytes(error_code ec, std::size_t size) {
    if (ec) {
        on_read_failed(ec);
        return;
    }
    buffer_.commit(size);
    if (parser_) {
        read_body();
    } else {
        read_head();
    }
}

void session::on_read_failed(error_code ec) {
    if (timed_out_ && has_answered_ && received().empty() && !parser_) {
        drop(); // an idle keep-alive connection; nobody waits for an answer
    } else if (timed_out_) {
        shared().figures.limited("request_timeout");
        answer(refuse(408, "The request took too long."));
    } else if (ec == http::error::body_limit) {
        answer(refuse(413, "The body is larger than 1 MiB."));
    } else if (ec.category() == asio::error::get_system_category() ||
               ec.category() == asio::error::get_misc_category()) {
        drop(); // the peer left
    } else {
        refuse_request({400, "body", "The body is not what its head says."});
    }
}

void session::on_head(std::string_view head) {
    if (auto const problem = find_problem(head)) {
        refuse_request(*problem);
        return;
    }
    parser_.emplace();
    parser_->header_limit(header_limit);
    parser_->body_limit(body_limit);
    parser_->eager(true); // or each put() would take one chunk
    error_code ec;
    parser_->put(asio::const_buffer{head.data(), head.size()}, ec);
    buffer_.consume(scanner_.end());
    if (ec == http::error::body_limit) {
        on_read_failed(ec);
        return;
    }
    if (ec || !parser_->is_header_done()) {
        refuse_request({400, "not_http", "This is not an HTTP/1 request."});
        return;
    }
    // The parser puts the trailer fields of a chunked body among the fields of the message that it
    // holds. Nobody has checked trailer fields, so the head leaves that message now.
    request_.base() = std::move(parser_->get().base());
    prepare_request();
}

// Decides who handles it, before its body is read.
void session::prepare_request() {
    auto const method = view(request_.method_string());
    to_ = {method == "HEAD", request_.version() < 11, wants_to_stay(request_)};
    if (!is_origin_form(method, view(request_.target()))) {
        auto const target = parse_target(method, view(request_.target()));
        target_host_ = target->host; // find_problem() saw that there is one
        request_.target(target->path_and_query);
    }
    auto matched = home_.routes().match(method, path_of(request_));
    if (auto* refusal = std::get_if<http_answer>(&matched)) {
        refusal->closes = !parser_->is_done();
        answer(std::move(*refusal));
        return;
    }
    route_ = std::move(std::get<router::found>(matched));
    if (parser_->is_done()) {
        handle();
    } else if (!is_body_refused()) {
        begin_body();
    }
}

bool session::is_body_refused() {
    auto const length = parser_->content_length();
    if (asks_for_websocket(request_)) {
        refuse_request({400, "upgrade_body", "A request for an upgrade has no body."});
        return true;
    }
    if (auto refusal = refuse_body(route_, value_of(request_, "Content-Type"),
                                   length ? std::optional<std::uint64_t>{*length} : std::nullopt)) {
        answer(std::move(*refusal));
        return true;
    }
    return false;
}

void session::begin_body() {
    if (to_.is_old || !received().empty() || !list_has(request_, "Expect", "100-continue")) {
        read_body();
        return;
    }
    outgoing_ = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(outgoing_),
                      [self = shared_from_this()](error_code ec, std::size_t) {
                          if (ec) {
                              self->on_read_failed(ec);
                          } else {
                              self->read_body();
                          }
                      });
}

void session::read_body() {
    error_code ec;
    buffer_.consume(parser_->put(buffer_.data(), ec));
    if (ec && ec != http::error::need_more) {
        on_read_failed(ec);
    } else if (parser_->is_done()) {
        handle();
    } else if (buffer_.size() == buffer_limit) {
        on_read_failed(http::error::buffer_overflow); // a line among the chunks without end
    } else {
        read_more();
    }
}

// ---- Answering ----------------------------------------------------------------------------------

client_of_request session::client() const {
    auto const host = target_host_.empty() ? value_of(request_, "Host") : target_host_;
    // haproxy puts its entry into a field of its own, behind what the client sent.
    return find_client(peer_, host, field_list{request_, "X-Forwarded-For"}.text(),
                       field_list{request_, "X-Forwarded-Host"}.text(),
                       shared().settings.trusted_proxies);
}

void session::handle() {
    request_.body() = std::move(parser_->get().body());
    join_lists(request_);
    set_deadline(doing::handling, request_limit);
    (*route_.handle)(shared_from_this());
}

void session::refuse_request(request_problem const& problem) {
    shared().figures.bad_request(problem.cause);
    static thread_local line_limit limit{refusals_a_second};
    if (auto const more = limit.admit()) {
        spdlog::info("http request refused status={} cause={} address={} why=\"{}\"{}",
                     problem.status, problem.cause, peer_.to_string(), problem.text, *more);
    }
    answer(refuse(problem.status, problem.text));
}

void session::answer(http_answer what) {
    to_.keep_alive = to_.keep_alive && !what.closes;
    shared().figures.http_answered(what.status);
    outgoing_ = serialize(what, to_);
    set_deadline(doing::writing, request_limit);
    asio::async_write(socket_, asio::buffer(outgoing_),
                      [self = shared_from_this()](error_code ec, std::size_t) {
                          self->timers().cancel(*self);
                          self->on_answered(ec);
                      });
}

void session::upgrade(std::string_view subprotocol, client_info facts) {
    timers().cancel(*this);
    home_.open_cable(make_websocket(std::move(socket_), std::move(request_), subprotocol),
                     std::move(facts));
}

void session::on_answered(error_code ec) {
    if (ec) {
        drop();
    } else if (to_.keep_alive) {
        has_answered_ = true;
        begin_request();
    } else {
        // Closing with unread input would reset the connection, and the peer might lose the
        // answer: read on for a moment.
        socket_.shutdown(tcp::socket::shutdown_send, ec);
        set_deadline(doing::leaving, goodbye_limit);
        discard();
    }
}

void session::discard() {
    buffer_.clear();
    auto const room = buffer_.prepare(read_size);
    socket_.async_read_some(room, [self = shared_from_this()](error_code ec, std::size_t) {
        if (ec) {
            self->drop();
        } else {
            self->discard();
        }
    });
}

void session::on_deadline(wheel::clock::time_point) {
    // Whoever works on it may let go of it now.
    auto const self = shared_from_this();
    if (what_ == doing::reading) {
        if (timed_out_) {
            drop(); // what was cancelled has gone on
            return;
        }
        // The read ends with operation_aborted, and then the answer is written.
        timed_out_ = true;
        set_deadline(doing::reading, goodbye_limit);
        error_code ignored; // a read that has ended needs no cancelling
        socket_.cancel(ignored);
        return;
    }
    if (what_ == doing::handling) {
        spdlog::error("http handler overran, dropped address={} path={}", peer_.to_string(),
                      log_value(path_of(request_)));
    }
    drop();
}

} // namespace

void start_http(http_host& home, tcp_socket socket) {
    auto const s = std::make_shared<session>(home, std::move(socket));
    home.keep_http(*s);
    s->start();
}

} // namespace presenced::server
