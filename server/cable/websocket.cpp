#include "server/cable/websocket_factory.hpp"

#include <boost/asio/compose.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/websocket/error.hpp>
#include <boost/beast/websocket/stream.hpp>
#include <boost/beast/websocket/teardown.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <type_traits>
#include <utility>

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
// what the client held ends with the verdict. It writes for itself, too, and so this is also where
// whole frames get in between whole frames of Beast's.
class watched_socket : public tcp_socket {
public:
    using frames = std::array<asio::const_buffer, 2>;

    explicit watched_socket(tcp_socket&& socket)
        : tcp_socket{std::move(socket)} {
        error_code ignored; // a socket for which this fails is none, and fails at the first read
        non_blocking(true, ignored);
    }

    socket_watcher* watcher = nullptr;

    // From now on reads wait.
    void hold() { holds_reads_ = true; }
    void let_go() {
        holds_reads_ = false;
        start(waiting_read_);
    }

    // Without an operation of Beast's and Asio's (docs/decisions, 0013): nearly always the kernel
    // takes all of it at once. Returns how many bytes it took: none while something else is being
    // written. An error shows with the next write that waits.
    std::size_t write_now(frames const& some) {
        error_code ignored;
        return writer_ == writer::nobody ? tcp_socket::send(some, 0, ignored) : 0;
    }

    // What write_now() had to leave. Beast's own frames wait until it is through.
    template <class Handler>
    void async_write_rest(frames const& rest, Handler&& handler) {
        writer_ = writer::owner;
        asio::async_write(static_cast<tcp_socket&>(*this), rest,
                          [this, to = std::decay_t<Handler>{std::forward<Handler>(handler)}](
                              error_code ec, std::size_t) mutable {
                              writer_ = writer::nobody;
                              if (!ec) { // else it would get into the middle of ours
                                  start(waiting_write_);
                              }
                              to(ec);
                          });
    }

    template <class Buffers, class Handler>
    void async_write_some(Buffers const& from, Handler&& handler) {
        std::decay_t<Handler> to{std::forward<Handler>(handler)};
        if (writer_ == writer::owner) {
            waiting_write_ = later([this, from, to = std::move(to)]() mutable {
                async_write_some(from, std::move(to));
            });
            return;
        }
        writer_ = writer::beast;
        tcp_socket::async_write_some(
            from, [this, to = std::move(to)](error_code ec, std::size_t bytes) mutable {
                writer_ = writer::nobody; // what is left of the frame is written from within `to`
                to(ec, bytes);
            });
    }

    template <class Buffers, class Handler>
    void async_read_some(Buffers const& into, Handler&& handler) {
        std::decay_t<Handler> to{std::forward<Handler>(handler)};
        if (holds_reads_) {
            waiting_read_ = later([this, into, to = std::move(to)]() mutable {
                async_read_some(into, std::move(to));
            });
            return;
        }
        tcp_socket::async_read_some(
            into, [this, to = std::move(to)](error_code ec, std::size_t bytes) mutable {
                watcher->on_taken(bytes);
                to(ec, bytes);
            });
    }

    // What waits ends with an error, like what is under way.
    void close(error_code& ec) {
        tcp_socket::close(ec);
        let_go();
        writer_ = writer::nobody;
        start(waiting_write_);
    }

private:
    enum class writer : std::uint8_t { nobody, beast, owner };

    struct operation {
        virtual ~operation() = default;
        virtual void run() = 0;
    };
    template <class F>
    static std::unique_ptr<operation> later(F&& f) {
        struct waiting final : operation {
            explicit waiting(F&& given)
                : call{std::move(given)} {}
            void run() override { call(); }
            F call;
        };
        return std::make_unique<waiting>(std::move(f));
    }
    static void start(std::unique_ptr<operation>& waiting) {
        if (auto const one = std::exchange(waiting, nullptr)) {
            one->run();
        }
    }

    // There is one of each at most.
    std::unique_ptr<operation> waiting_read_;
    std::unique_ptr<operation> waiting_write_;
    bool holds_reads_ = false;
    writer writer_ = writer::nobody;
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

// What stands before a text message of a server, in one frame and so unmasked, and an empty ping
// before that if there is to be one (RFC 6455, 5.2).
class frame_head {
public:
    frame_head() = default;
    frame_head(std::size_t message_bytes, bool with_ping) {
        if (with_ping) {
            add({0x89, 0});
        }
        if (message_bytes < 126) {
            add({0x81, message_bytes});
        } else if (message_bytes < 65'536) {
            add({0x81, 126, message_bytes >> 8U, message_bytes});
        } else {
            add({0x81, 127});
            for (int shift = 56; shift >= 0; shift -= 8) {
                add({static_cast<std::uint64_t>(message_bytes) >> shift});
            }
        }
    }

    std::size_t size() const { return size_; }
    asio::const_buffer bytes() const { return asio::buffer(bytes_.data(), size_); }

private:
    void add(std::initializer_list<std::uint64_t> some) {
        for (auto const byte : some) {
            bytes_.at(size_) = static_cast<char>(byte & 0xFFU);
            ++size_;
        }
    }

    std::array<char, 12> bytes_{};
    std::uint8_t size_ = 0;
};

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

    bool send(frame const& f, bool with_ping) override try {
        auto& socket = stream_.next_layer();
        head_ = {f->size(), with_ping};
        watched_socket::frames left{head_.bytes(), asio::buffer(*f)};
        // Beast knows whether a close frame has begun: nothing may follow it.
        auto const taken = stream_.is_open() ? socket.write_now(left) : 0;
        for (auto skip = taken; auto& part : left) {
            auto const n = std::min(skip, part.size());
            part += n;
            skip -= n;
        }
        if (asio::buffer_size(left) == 0) {
            return true;
        }
        sending_ = f;
        auto const sent = [self = shared_from_this()](error_code ec, std::size_t = 0) {
            auto const sent_frame = std::move(self->sending_); // the owner may ask which it was
            if (ec) {
                self->fail(ec);
            } else if (self->owner_ != nullptr) {
                self->owner_->on_sent();
            }
        };
        if (taken > 0) {
            socket.async_write_rest(left, sent);
            return false;
        }
        if (with_ping) {
            ping();
        }
        stream_.async_write(asio::buffer(*sending_), sent);
        return false;
    } catch (...) {
        // No memory, perhaps in the middle of a frame: nothing may follow that. The read ends.
        error_code ignored;
        stream_.next_layer().close(ignored);
        throw;
    }

    void ping() override {
        if (std::exchange(pinging_, true)) {
            return;
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

    void abandon() override {
        owner_ = nullptr;
        error_code ignored; // nobody is there to hear it
        stream_.next_layer().close(ignored);
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
    frame_head head_; // of what is being sent
    bool pinging_ = false;
    bool closing_ = false;
};

} // namespace

std::shared_ptr<websocket> make_websocket(tcp_socket socket, http_request request,
                                          std::string_view subprotocol) {
    return std::make_shared<beast_websocket>(std::move(socket), std::move(request), subprotocol);
}

} // namespace presenced::server
