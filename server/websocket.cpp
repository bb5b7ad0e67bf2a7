#include "server/websocket_factory.hpp"

#include <boost/asio/compose.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/websocket/error.hpp>
#include <boost/beast/websocket/stream.hpp>
#include <boost/beast/websocket/teardown.hpp>

#include <array>
#include <type_traits>
#include <utility>

#include <sys/socket.h>

namespace presenced::server {

namespace {

namespace beast = boost::beast;
namespace ws = beast::websocket;

// Spec of the wire: at most 64 KiB a message; over it Beast closes with 1009.
constexpr std::size_t max_message_bytes = 64 * 1024;
// What an idle connection keeps ready for its next message: room for any usual command. Beast's own
// choice is 1.5 KiB, a quarter of all that an idle session took.
constexpr std::size_t usual_message_bytes = 256;
constexpr std::size_t further_bytes = 4096; // a read for the rest of a longer one

// Who has to know what happens to a WebSocket's socket.
class socket_watcher {
public:
    virtual void on_teardown() = 0;
    virtual void on_taken(std::size_t bytes) = 0;

protected:
    ~socket_watcher() = default;
};

// Beast reads for itself: control frames and fragments pass through it without an end of its read
// operation, and after a protocol error it sends a close frame and waits until the peer has closed.
// So the socket below it is where a peer is made to wait, and what says that the waiting begins:
// what the client held ends with the verdict.
class watched_socket : public tcp_socket {
public:
    explicit watched_socket(tcp_socket&& socket)
        : tcp_socket{std::move(socket)} {}

    socket_watcher* watcher = nullptr;

    // From now on reads wait.
    void hold() { held_ = true; }
    void let_go() {
        held_ = false;
        if (auto const read = std::exchange(waiting_, nullptr)) {
            read->start(*this);
        }
    }

    // What is written next need not leave before what follows it at once. That may be the rest of
    // another frame, and the kernel waits for 200 ms at most.
    void expect_more() { more_ = true; }

    template <class Buffers, class Handler>
    void async_write_some(Buffers const& from, Handler&& handler) {
        auto const flags = std::exchange(more_, false) ? MSG_MORE : 0;
        tcp_socket::async_send(from, flags, std::forward<Handler>(handler));
    }

    // A read that waits ends with an error, like one that is under way.
    void close(error_code& ec) {
        tcp_socket::close(ec);
        let_go();
    }

    template <class Buffers, class Handler>
    void async_read_some(Buffers const& into, Handler&& handler) {
        using operation = pending_read<Buffers, std::decay_t<Handler>>;
        if (held_) {
            waiting_ = std::make_unique<operation>(into, std::forward<Handler>(handler));
            return;
        }
        tcp_socket::async_read_some(
            into, [this, to = std::decay_t<Handler>{std::forward<Handler>(handler)}](
                      error_code ec, std::size_t bytes) mutable {
                watcher->on_taken(bytes);
                to(ec, bytes);
            });
    }

private:
    struct held_read {
        virtual ~held_read() = default;
        virtual void start(watched_socket& socket) = 0;
    };
    template <class Buffers, class Handler>
    struct pending_read final : held_read {
        pending_read(Buffers const& buffers, Handler&& handler)
            : into{buffers}
            , to{std::move(handler)} {}
        void start(watched_socket& socket) override { socket.async_read_some(into, std::move(to)); }
        Buffers into;
        Handler to;
    };

    std::unique_ptr<held_read> waiting_; // there is one at most
    bool held_ = false;
    bool more_ = false;
};

// Reads, and throws away, until the peer has closed or the socket is dropped.
struct drain {
    watched_socket& socket;

    template <class Self>
    void operator()(Self& self, error_code ec = {}, std::size_t = 0) {
        static thread_local std::array<char, 4096> thrown_away;
        if (ec) {
            self.complete(ec == asio::error::eof ? error_code{} : ec);
        } else {
            socket.tcp_socket::async_read_some(asio::buffer(thrown_away), std::move(self));
        }
    }
};

// Found by Beast through its argument. Beast 1.81's own stops reading after the first 2 KiB and
// closes; what is unread then resets the connection, and the peer of an over-long message may
// never see why it was closed.
template <class Handler>
void async_teardown(beast::role_type, watched_socket& socket, Handler&& handler) {
    if (socket.watcher != nullptr) {
        socket.watcher->on_teardown();
    }
    error_code ignored; // the read says it, too
    socket.shutdown(tcp::socket::shutdown_send, ignored);
    std::decay_t<Handler> to{std::forward<Handler>(handler)};
    asio::async_compose<std::decay_t<Handler>, void(error_code)>(drain{socket}, to, socket);
}

// No compression: it costs 99 KiB a connection after the first message.
using stream = ws::stream<watched_socket, false>;

class beast_websocket final : public websocket,
                              private socket_watcher,
                              public std::enable_shared_from_this<beast_websocket> {
public:
    beast_websocket(tcp_socket socket, http_request request, std::string_view subprotocol)
        : stream_{watched_socket{std::move(socket)}}
        , request_{std::make_unique<http_request>(std::move(request))} {
        stream_.set_option(ws::stream_base::decorator{[subprotocol](ws::response_type& answer) {
            answer.set(beast::http::field::server, "presenced");
            if (!subprotocol.empty()) {
                answer.set(beast::http::field::sec_websocket_protocol,
                           beast::string_view{subprotocol.data(), subprotocol.size()});
            }
        }});
        stream_.next_layer().watcher = this;
        // Deadlines and pings are the wheel's.
        stream_.set_option(
            ws::stream_base::timeout{ws::stream_base::none(), ws::stream_base::none(), false});
        stream_.read_message_max(max_message_bytes);
        stream_.auto_fragment(false);
        stream_.text(true);
    }

    void start(websocket_owner& owner) override {
        owner_ = &owner;
        stream_.async_accept(*request_,
                             [self = shared_from_this()](error_code ec) { self->on_accept(ec); });
    }

    void send(frame f) override {
        sending_ = std::move(f);
        stream_.async_write(asio::buffer(*sending_),
                            [self = shared_from_this()](error_code ec, std::size_t) {
                                self->sending_.reset();
                                if (ec) {
                                    self->fail(ec);
                                } else if (self->owner_ != nullptr) {
                                    self->owner_->on_sent();
                                }
                            });
    }

    void ping(bool more) override {
        if (std::exchange(pinging_, true)) {
            return;
        }
        if (more) {
            stream_.next_layer().expect_more();
        }
        stream_.async_ping({}, [self = shared_from_this()](error_code ec) {
            self->pinging_ = false;
            if (ec) {
                self->fail(ec);
            }
        });
    }

    void pause() override {
        if (!closing_) {
            stream_.next_layer().hold();
        }
    }

    void resume() override { stream_.next_layer().let_go(); }

    void close() override {
        if (std::exchange(closing_, true)) {
            return;
        }
        resume();
        // From here on nobody starts to read: async_close() does, for the peer's close frame. With
        // a control callback Beast 1.81 would deadlock otherwise: a read that finds the close frame
        // in its buffer goes through the queue before it handles it, holding the read lock; if the
        // write of our close frame ends meanwhile, each waits for the other's lock for ever. For
        // ever is closing_limit at most: then the owner drops the socket, which needs no lock. A
        // read that was under way when this was called can still get there.
        stream_.async_close(ws::close_code::normal, [self = shared_from_this()](error_code ec) {
            self->fail(ec ? ec : error_code{ws::error::closed});
        });
    }

    void drop() override {
        error_code ignored; // it is being thrown away
        stream_.next_layer().close(ignored);
        // Whatever is under way may wait for something else than the socket.
        asio::post(stream_.get_executor(),
                   [self = shared_from_this()] { self->fail(asio::error::operation_aborted); });
    }

private:
    void on_teardown() override {
        if (owner_ != nullptr) {
            owner_->on_closing();
        }
    }

    void on_taken(std::size_t bytes) override {
        if (owner_ != nullptr) {
            owner_->on_received(bytes);
        }
    }

    void on_accept(error_code ec) {
        request_.reset();
        stream_.set_option(ws::stream_base::decorator{[](ws::response_type&) {
        }});
        if (ec) {
            fail(ec);
            return;
        }
        stream_.control_callback([this](ws::frame_type kind, beast::string_view) {
            if (owner_ == nullptr) {
                return;
            }
            if (kind == ws::frame_type::close) {
                owner_->on_closing();
            } else {
                owner_->on_control();
            }
        });
        owner_->on_open();
        read();
    }

    void read() {
        if (owner_ == nullptr || closing_) {
            return;
        }
        auto const limit = buffer_.size() == 0 ? usual_message_bytes : further_bytes;
        stream_.async_read_some(
            buffer_, limit,
            [self = shared_from_this()](error_code ec, std::size_t) { self->on_read(ec); });
    }

    void on_read(error_code ec) {
        if (ec) {
            fail(ec);
            return;
        }
        if (owner_ == nullptr) {
            return;
        }
        if (!stream_.is_message_done()) {
            read();
            return;
        }
        if (stream_.got_text()) {
            auto const data = buffer_.cdata();
            owner_->on_text({static_cast<char const*>(data.data()), data.size()});
        } else {
            owner_->on_binary();
        }
        // A message of the usual size leaves its memory for the next; a longer one does not.
        buffer_.consume(buffer_.size());
        if (buffer_.capacity() > usual_message_bytes) {
            buffer_.shrink_to_fit();
        }
        read();
    }

    // The first error wins; the owner hears of the end once.
    void fail(error_code ec) {
        auto* owner = std::exchange(owner_, nullptr);
        if (owner == nullptr) {
            return;
        }
        error_code ignored; // the end is decided already
        stream_.next_layer().close(ignored);
        auto how = socket_end::lost;
        if (ec == ws::error::closed) {
            how = socket_end::closed;
        } else if (ec == ws::error::message_too_big || ec == ws::condition::protocol_violation) {
            how = socket_end::violated;
        }
        owner->on_end(how);
    }

    stream stream_;
    std::unique_ptr<http_request> request_; // until the handshake is through
    websocket_owner* owner_ = nullptr;
    beast::flat_buffer buffer_;
    frame sending_;
    bool pinging_ = false;
    bool closing_ = false;
};

} // namespace

std::shared_ptr<websocket> make_websocket(tcp_socket socket, http_request request,
                                          std::string_view subprotocol) {
    return std::make_shared<beast_websocket>(std::move(socket), std::move(request), subprotocol);
}

} // namespace presenced::server
