#include "clients/cpp/cable_client.hpp"

#include "protocol/codec.hpp"

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/compose.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/basic_resolver.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/websocket/rfc6455.hpp>
#include <boost/beast/websocket/stream.hpp>

#include <netinet/in.h>

#include <deque>
#include <variant>

namespace presenced::clients {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using boost::system::error_code;
using tcp = asio::ip::tcp;
// Without type erasure, which costs every idle client a kilobyte and more.
using executor = asio::io_context::executor_type;
using tcp_socket = asio::basic_stream_socket<tcp, executor>;
namespace websocket = beast::websocket;
using timer = asio::basic_waitable_timer<std::chrono::steady_clock,
                                         asio::wait_traits<std::chrono::steady_clock>, executor>;
using resolver = asio::ip::basic_resolver<tcp, executor>;

// A socket whose reads can be held back at any moment. Beast always has a read under way, and
// cancelling one ends the stream; here it waits until the socket is readable and the gate open.
class gated_socket {
public:
    using executor_type = executor;

    explicit gated_socket(asio::io_context& io)
        : socket_{io}
        , gate_{io} {}

    executor_type get_executor() { return socket_.get_executor(); }
    tcp_socket& socket() { return socket_; }

    void hold() { held_ = true; }
    void release() {
        held_ = false;
        gate_.cancel();
    }

    template <class Buffers, class Token>
    auto async_read_some(Buffers const& buffers, Token&& token) {
        return asio::async_compose<Token, void(error_code, std::size_t)>(
            read_operation<Buffers>{*this, buffers}, token, socket_);
    }
    template <class Buffers, class Token>
    auto async_write_some(Buffers const& buffers, Token&& token) {
        return socket_.async_write_some(buffers, std::forward<Token>(token));
    }

    // Beast finds these by name when it ends a connection.
    friend void beast_close_socket(gated_socket& s) { beast::close_socket(s.socket_); }
    template <class Handler>
    friend void async_teardown(beast::role_type role, gated_socket& s, Handler&& handler) {
        websocket::async_teardown(role, s.socket_, std::forward<Handler>(handler));
    }

private:
    template <class Buffers>
    struct read_operation {
        gated_socket& from;
        Buffers buffers;
        bool readable = false;

        template <class Self>
        void operator()(Self& self, error_code ec = {}, std::size_t = 0) {
            auto& s = from;
            if (readable) {
                if (!ec && !s.held_) {
                    auto const n = s.socket_.read_some(buffers, ec);
                    if (ec != asio::error::would_block) {
                        self.complete(ec, n);
                        return;
                    }
                } else if (ec) {
                    self.complete(ec, 0);
                    return;
                }
            }
            if (s.held_ && s.socket_.is_open()) {
                readable = false;
                s.gate_.expires_at(timer::time_point::max());
                s.gate_.async_wait(std::move(self));
            } else {
                readable = true;
                s.socket_.async_wait(tcp_socket::wait_read, std::move(self));
            }
        }
    };

    tcp_socket socket_;
    timer gate_;
    bool held_ = false;
};

std::string percent_encode(std::string_view text) {
    constexpr auto digits = "0123456789ABCDEF";
    std::string encoded;
    for (auto const c : text) {
        auto const byte = static_cast<unsigned char>(c);
        if ((byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
            (byte >= '0' && byte <= '9') || byte == '-' || byte == '_' || byte == '.' ||
            byte == '~') {
            encoded += c;
        } else {
            encoded += '%';
            encoded += digits[byte >> 4];
            encoded += digits[byte & 15];
        }
    }
    return encoded;
}

std::string target_with_token(cable_client_options const& o) {
    if (!o.token || o.token_in != cable_client_options::token_place::query) {
        return o.target;
    }
    auto const separator = o.target.find('?') == o.target.npos ? "?" : "&";
    return o.target + separator + "token=" + percent_encode(*o.token);
}

std::string host_of(cable_client_options const& o) {
    if (!o.host_header.empty()) {
        return o.host_header;
    }
    auto const v6 = o.host.find(':') != o.host.npos;
    return (v6 ? "[" + o.host + "]" : o.host) + ":" + std::to_string(o.port);
}

} // namespace

void cable_client_handler::on_text(std::string_view text) {
    // What the client did not want to know it does not limit either: depth alone is bounded.
    protocol::limits bounds;
    bounds.frame_bytes = text.size();
    bounds.identifier_bytes = text.size();
    if (auto const message = protocol::decode_server_frame(text, bounds)) {
        on_message(*message);
    }
}

struct cable_client::connection : std::enable_shared_from_this<connection> {
    // Needed until the upgrade only.
    struct upgrade {
        cable_client_options options;
        resolver names;
        timer deadline;
        websocket::response_type response;
        std::vector<tcp::endpoint> addresses;
        std::size_t next = 0;
    };
    struct frame {
        std::string bytes;
        bool binary;
    };
    enum class phase : std::uint8_t { idle, connecting, open, ended };

    connection(asio::io_context& io, cable_client_options options, cable_client_handler& h)
        : handler{&h}
        , stream{io}
        , buffer{options.max_message}
        , upgrading{new upgrade{std::move(options), resolver{io}, timer{io}, {}, {}, 0}} {}

    void start() {
        state = phase::connecting;
        auto& o = upgrading->options;
        upgrading->deadline.expires_after(o.timeout);
        upgrading->deadline.async_wait([self = shared_from_this()](error_code ec) {
            if (!ec && self->state == phase::connecting) {
                self->end(1006, asio::error::timed_out);
            }
        });
        error_code not_an_address;
        auto const address = asio::ip::make_address(o.host, not_an_address);
        if (!not_an_address) {
            upgrading->addresses.emplace_back(address, o.port);
            // Not at once: the handler may not be called before start() has returned.
            asio::post(stream.get_executor(), [self = shared_from_this()] { self->connect(); });
            return;
        }
        upgrading->names.async_resolve(
            o.host, std::to_string(o.port),
            [self = shared_from_this()](error_code ec, resolver::results_type const& found) {
                if (self->state != phase::connecting) {
                    return;
                }
                if (ec) {
                    self->end(1006, ec);
                    return;
                }
                for (auto const& entry : found) {
                    self->upgrading->addresses.push_back(entry.endpoint());
                }
                self->connect();
            });
    }

    // Tries the addresses in turn.
    void connect() {
        if (state != phase::connecting) {
            return;
        }
        auto const& to = upgrading->addresses[upgrading->next++];
        error_code ec;
        auto& socket = stream.next_layer().socket();
        if (socket.is_open()) {
            socket.close(ec);
        }
        prepare_socket(to, ec);
        if (ec) {
            connected(ec);
            return;
        }
        socket.async_connect(
            to, [self = shared_from_this()](error_code error) { self->connected(error); });
    }

    void prepare_socket(tcp::endpoint const& to, error_code& ec) {
        auto const& o = upgrading->options;
        auto& socket = stream.next_layer().socket();
        socket.open(to.protocol(), ec);
        if (!ec && o.receive_buffer) {
            socket.set_option(asio::socket_base::receive_buffer_size{*o.receive_buffer}, ec);
        }
        if (ec || !o.bind_address) {
            return;
        }
        auto const from = asio::ip::make_address(*o.bind_address, ec);
        if (ec) {
            return;
        }
        using no_port = asio::detail::socket_option::boolean<IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT>;
        socket.set_option(no_port{true}, ec);
        if (!ec) {
            socket.bind({from, 0}, ec);
        }
    }

    void connected(error_code ec) {
        if (state != phase::connecting) {
            return;
        }
        auto& socket = stream.next_layer().socket();
        if (!ec) {
            socket.non_blocking(true, ec); // the gate reads when there is something to read
        }
        if (!ec) {
            socket.set_option(tcp::no_delay{upgrading->options.no_delay}, ec);
        }
        if (!ec) {
            handshake();
        } else if (upgrading->next < upgrading->addresses.size()) {
            connect();
        } else {
            end(1006, ec);
        }
    }

    void handshake() {
        auto const& o = upgrading->options;
        // The handshake's deadline is ours; this one is for the closing handshake.
        stream.set_option(
            websocket::stream_base::timeout{o.timeout, websocket::stream_base::none(), false});
        stream.set_option(websocket::stream_base::decorator{
            [headers = o.headers, origin = o.origin, offered = join(o.subprotocols),
             bearer = bearer_of(o)](websocket::request_type& request) {
                request.erase(beast::http::field::user_agent);
                if (origin) {
                    request.set(beast::http::field::origin, *origin);
                }
                if (!offered.empty()) {
                    request.set(beast::http::field::sec_websocket_protocol, offered);
                }
                if (!bearer.empty()) {
                    request.set(beast::http::field::authorization, bearer);
                }
                for (auto const& [name, value] : headers) {
                    request.insert(name, value);
                }
            }});
        stream.control_callback([this](websocket::frame_type kind, beast::string_view) {
            pings += kind == websocket::frame_type::ping ? 1 : 0;
        });
        stream.write_buffer_bytes(512);
        stream.auto_fragment(false);
        stream.read_message_max(o.max_message);
        stream.async_handshake(upgrading->response, host_of(o), target_with_token(o),
                               [self = shared_from_this()](error_code ec) { self->upgraded(ec); });
    }

    static std::string join(std::vector<std::string> const& names) {
        std::string list;
        for (auto const& name : names) {
            list += (list.empty() ? "" : ", ") + name;
        }
        return list;
    }

    static std::string bearer_of(cable_client_options const& o) {
        return o.token && o.token_in == cable_client_options::token_place::bearer
                   ? "Bearer " + *o.token
                   : std::string{};
    }

    void upgraded(error_code ec) {
        if (state != phase::connecting) {
            return;
        }
        upgrading->deadline.cancel();
        auto const done = std::exchange(upgrading, nullptr);
        auto const& response = done->response;
        if (ec == websocket::error::upgrade_declined) {
            header_list headers;
            for (auto const& field : response) {
                headers.emplace_back(field.name_string(), field.value());
            }
            shut();
            if (handler != nullptr) {
                std::exchange(handler, nullptr)->on_refused(response.result_int(), headers);
            }
            return;
        }
        if (ec) {
            end(1006, ec);
            return;
        }
        state = phase::open;
        auto const self = shared_from_this();
        read();
        if (handler != nullptr) {
            auto const chosen = response[beast::http::field::sec_websocket_protocol];
            handler->on_open({chosen.data(), chosen.size()});
        }
    }

    void read() {
        stream.async_read(buffer, [self = shared_from_this()](error_code ec, std::size_t) {
            self->was_read(ec);
        });
    }

    void was_read(error_code ec) {
        if (state == phase::ended) {
            return;
        }
        if (ec) {
            auto const closed = ec == websocket::error::closed;
            end(closed ? code_of(stream.reason().code) : std::uint16_t{1006},
                closed ? error_code{} : ec);
            return;
        }
        if (handler != nullptr && stream.got_text()) {
            auto const data = buffer.data();
            handler->on_text({static_cast<char const*>(data.data()), data.size()});
        }
        if (state == phase::ended) {
            return;
        }
        buffer.clear();
        // What one long message needed is not kept by tens of thousands of clients.
        if (buffer.capacity() > 4096) {
            buffer.shrink_to_fit();
        }
        // async_close() reads for itself; a read beside it can deadlock with it (see
        // websocket.cpp).
        if (!closing) {
            read();
        }
    }

    static std::uint16_t code_of(std::uint16_t code) {
        constexpr std::uint16_t no_status = 1005; // the frame had none (RFC 6455 7.1.5)
        return code == 0 ? no_status : code;
    }

    void send(std::string bytes, bool binary) {
        if (state != phase::open || close_code) {
            return;
        }
        queue.push_back({std::move(bytes), binary});
        if (queue.size() == 1) {
            write();
        }
    }

    void write() {
        auto const& first = queue.front();
        stream.binary(first.binary);
        stream.async_write(
            asio::buffer(first.bytes),
            [self = shared_from_this()](error_code ec, std::size_t) { self->was_written(ec); });
    }

    void was_written(error_code ec) {
        if (state == phase::ended) {
            return;
        }
        queue.pop_front();
        if (ec) {
            queue.clear(); // the pending read says why
            return;
        }
        if (!queue.empty()) {
            write();
        } else if (close_code) {
            send_close();
        }
    }

    void close(std::uint16_t code) {
        if (state == phase::connecting || state == phase::idle) {
            end(1006, asio::error::operation_aborted);
        } else if (state == phase::open && !close_code) {
            close_code = code;
            if (queue.empty()) {
                send_close();
            }
        }
    }

    void send_close() {
        closing = true;
        stream.async_close(
            websocket::close_reason{*close_code}, [self = shared_from_this()](error_code ec) {
                // The pending read reports the end, unless it is held back.
                self->end(ec ? std::uint16_t{1006} : code_of(self->stream.reason().code), ec);
            });
    }

    // Closes the socket; the operations under way end, and find that this is over.
    void shut() {
        state = phase::ended;
        error_code ignored; // it is closed either way
        stream.next_layer().socket().close(ignored);
        stream.next_layer().release();
        if (upgrading) {
            upgrading->names.cancel();
            upgrading->deadline.cancel();
        }
    }

    void end(std::uint16_t code, error_code ec) {
        if (state == phase::ended) {
            return;
        }
        auto const self = shared_from_this();
        shut();
        if (handler != nullptr) {
            std::exchange(handler, nullptr)->on_closed(code, ec);
        }
    }

    void kill() {
        if (state == phase::ended) {
            return;
        }
        error_code ignored; // a socket that is not connected has nothing to reset
        auto& socket = stream.next_layer().socket();
        if (socket.is_open()) {
            socket.set_option(asio::socket_base::linger{true, 0}, ignored);
        }
        end(1006, asio::error::operation_aborted);
    }

    cable_client_handler* handler; // none: nobody listens any more
    websocket::stream<gated_socket, false> stream;
    beast::flat_buffer buffer;
    std::deque<frame> queue; // the first one is being written
    std::unique_ptr<upgrade> upgrading;
    std::uint64_t pings = 0;
    std::optional<std::uint16_t> close_code; // asked for
    bool closing = false;                    // its frame is on the way
    phase state = phase::idle;
};

cable_client::cable_client(asio::io_context& io, cable_client_options options,
                           cable_client_handler& handler)
    : connection_{std::make_shared<connection>(io, std::move(options), handler)} {}

cable_client::~cable_client() {
    connection_->handler = nullptr;
    connection_->kill();
}

void cable_client::start() {
    connection_->start();
}

void cable_client::send_text(std::string text) {
    connection_->send(std::move(text), false);
}

void cable_client::send_binary(std::string bytes) {
    connection_->send(std::move(bytes), true);
}

void cable_client::subscribe(std::string identifier) {
    send_text(protocol::encode_command(protocol::subscribe_command{std::move(identifier)}));
}

void cable_client::unsubscribe(std::string identifier) {
    send_text(protocol::encode_command(protocol::unsubscribe_command{std::move(identifier)}));
}

void cable_client::close(std::uint16_t code) {
    connection_->close(code);
}

void cable_client::kill() {
    connection_->kill();
}

void cable_client::stop_reading() {
    connection_->stream.next_layer().hold();
}

void cable_client::resume_reading() {
    connection_->stream.next_layer().release();
}

bool cable_client::is_open() const {
    return connection_->state == connection::phase::open;
}

std::uint64_t cable_client::native_pings() const {
    return connection_->pings;
}

std::size_t cable_client::unsent() const {
    return connection_->queue.size();
}

} // namespace presenced::clients
