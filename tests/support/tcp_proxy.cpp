#include "tests/support/tcp_proxy.hpp"

#include "tests/support/cable.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <array>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace presenced::tests {

namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// What a path takes before its sender feels that nothing arrives.
constexpr std::size_t path_capacity = 1 << 20;

// One way from one end to the other, as all connections share it.
struct road {
    milliseconds delay{0};
    bool is_closed = false;
    std::uint64_t delivered = 0;
};

class link;

// One way of one connection: reads at once, delivers when it is time.
class lane {
public:
    lane(link& owner, tcp::socket& from, tcp::socket& to, road& on)
        : owner_{owner}
        , from_{from}
        , to_{to}
        , road_{on}
        , due_{from.get_executor()} {}

    void read();
    void deliver();
    // What `from` has to say last: that it sends no more, or that it is gone.
    void end(bool by_reset);
    bool has_delivered_end() const { return delivered_end_; }

private:
    enum class kind : std::uint8_t { bytes, end, reset };
    struct parcel {
        kind what;
        steady::time_point due;
        std::string bytes;
    };

    void hold(kind what, std::string bytes = {});
    void write();

    link& owner_;
    tcp::socket& from_;
    tcp::socket& to_;
    road& road_;
    asio::steady_timer due_;
    std::array<char, 16 * 1024> part_{};
    std::deque<parcel> parcels_;
    std::size_t size_ = 0; // of the parcels
    bool reading_ = false;
    bool writing_ = false;
    bool ended_ = false;
    bool delivered_end_ = false;
};

struct roads {
    road to_server;
    road to_client;

    bool are_open() const { return !to_server.is_closed && !to_client.is_closed; }
};

class link : public std::enable_shared_from_this<link> {
public:
    link(tcp::socket client, tcp::endpoint server, roads& on, std::set<std::shared_ptr<link>>& all)
        : client_{std::move(client)}
        , server_{client_.get_executor()}
        , server_endpoint_{std::move(server)}
        , roads_{on}
        , all_{all}
        , to_server_{*this, client_, server_, on.to_server}
        , to_client_{*this, server_, client_, on.to_client} {}

    void start() {
        error_code ignored; // it may be gone already, which the first read tells
        client_.set_option(tcp::no_delay{true}, ignored);
        to_server_.read();
        go_on();
    }

    // After every change of the roads.
    void go_on() {
        if (connected_) {
            to_server_.deliver();
            to_client_.deliver();
        } else if (!connecting_ && roads_.are_open()) {
            connect();
        }
    }

    lane& opposite(lane const& of) { return &of == &to_server_ ? to_client_ : to_server_; }
    bool is_connected() const { return connected_; }
    bool is_over() const { return over_; }

    void reset() {
        for (auto* const socket : {&client_, &server_}) {
            error_code ignored; // whichever is gone need not be told
            socket->set_option(asio::socket_base::linger{true, 0}, ignored);
        }
        finish();
    }

    void finish_if_both_ended() {
        if (to_server_.has_delivered_end() && to_client_.has_delivered_end()) {
            finish();
        }
    }

private:
    void connect() {
        connecting_ = true;
        server_.async_connect(server_endpoint_, [self = shared_from_this()](error_code ec) {
            self->connecting_ = false;
            if (self->over_) {
                return;
            }
            if (ec) {
                self->reset();
                return;
            }
            self->connected_ = true;
            error_code ignored; // see start()
            self->server_.set_option(tcp::no_delay{true}, ignored);
            self->to_client_.read();
            self->go_on();
        });
    }

    void finish() {
        over_ = true;
        for (auto* const socket : {&client_, &server_}) {
            error_code ignored; // closed it is, whatever close() says
            socket->close(ignored);
        }
        all_.erase(shared_from_this());
    }

    tcp::socket client_;
    tcp::socket server_;
    tcp::endpoint server_endpoint_;
    roads& roads_;
    std::set<std::shared_ptr<link>>& all_;
    lane to_server_;
    lane to_client_;
    bool connecting_ = false;
    bool connected_ = false;
    bool over_ = false;
};

void lane::read() {
    if (reading_ || ended_ || size_ >= path_capacity) {
        return;
    }
    reading_ = true;
    from_.async_read_some(asio::buffer(part_),
                          [this, keep = owner_.shared_from_this()](error_code ec, std::size_t n) {
                              reading_ = false;
                              if (owner_.is_over()) {
                                  return;
                              }
                              if (ec) {
                                  end(ec != asio::error::eof);
                                  return;
                              }
                              hold(kind::bytes, {part_.data(), n});
                              read();
                          });
}

void lane::end(bool by_reset) {
    if (!std::exchange(ended_, true) || by_reset) {
        hold(by_reset ? kind::reset : kind::end);
    }
}

void lane::hold(kind what, std::string bytes) {
    size_ += bytes.size();
    parcels_.push_back({what, steady::now() + road_.delay, std::move(bytes)});
    deliver();
}

void lane::deliver() {
    if (writing_ || parcels_.empty() || road_.is_closed || !owner_.is_connected()) {
        return;
    }
    if (parcels_.front().due > steady::now()) {
        due_.expires_at(parcels_.front().due);
        due_.async_wait([this, keep = owner_.shared_from_this()](error_code ec) {
            if (!ec && !owner_.is_over()) {
                deliver();
            }
        });
        return;
    }
    auto const what = parcels_.front().what;
    if (what == kind::bytes) {
        write();
        return;
    }
    parcels_.pop_front();
    if (what == kind::reset) {
        owner_.reset();
        return;
    }
    error_code ignored; // if `to` is gone, the opposite lane learns it
    to_.shutdown(tcp::socket::shutdown_send, ignored);
    delivered_end_ = true;
    owner_.finish_if_both_ended();
}

void lane::write() {
    writing_ = true;
    asio::async_write(to_, asio::buffer(parcels_.front().bytes),
                      [this, keep = owner_.shared_from_this()](error_code ec, std::size_t n) {
                          writing_ = false;
                          if (owner_.is_over()) {
                              return;
                          }
                          road_.delivered += n;
                          size_ -= parcels_.front().bytes.size();
                          parcels_.pop_front();
                          if (ec) {
                              // Nobody takes it. `from` hears that when it could on a real path.
                              owner_.opposite(*this).end(true);
                          }
                          read();
                          deliver();
                      });
}

} // namespace

class tcp_proxy::engine {
public:
    explicit engine(std::uint16_t server_port)
        : server_{asio::ip::address_v4::loopback(), server_port} {
        loop_.run([this] { listen(); });
    }

    ~engine() {
        loop_.run([this] {
            refuse();
            port_.reset();
        });
    }

    template <class Job>
    void run(Job job) {
        loop_.run(std::move(job));
    }

    // What follows is for the loop's thread.
    template <class Change>
    void change(towards way, Change to) {
        if (way != towards::client) {
            to(roads_.to_server);
        }
        if (way != towards::server) {
            to(roads_.to_client);
        }
    }

    void cut() {
        for (auto const& one : std::set{links_}) {
            one->reset();
        }
    }

    void refuse() {
        acceptor_.reset();
        cut();
    }

    void heal() {
        change(towards::both, [](road& r) {
            r.delay = milliseconds{0};
            r.is_closed = false;
        });
        for (auto const& one : std::set{links_}) {
            one->go_on();
        }
        if (!acceptor_) {
            listen();
        }
    }

    std::uint16_t port() const { return endpoint_.port(); }
    std::size_t connections() const { return links_.size(); }
    std::uint64_t delivered(towards way) {
        std::uint64_t sum = 0;
        change(way, [&](road const& r) { sum += r.delivered; });
        return sum;
    }

private:
    // The first time on any port, then on the same one. It stays bound meanwhile: somebody else's
    // outgoing connection might get it.
    void listen() {
        if (!port_) {
            port_.emplace(loop_.context(), endpoint_.protocol());
            port_->set_option(tcp::socket::reuse_address{true});
            port_->bind(endpoint_);
            endpoint_ = port_->local_endpoint();
        }
        acceptor_.emplace(loop_.context(), endpoint_);
        accept();
    }

    void accept() {
        acceptor_->async_accept([this](error_code ec, tcp::socket client) {
            if (ec == asio::error::operation_aborted || !acceptor_) {
                return;
            }
            if (!ec) {
                auto const one = std::make_shared<link>(std::move(client), server_, roads_, links_);
                links_.insert(one);
                one->start();
            }
            accept();
        });
    }

    tcp::endpoint server_;
    tcp::endpoint endpoint_{asio::ip::address_v4::loopback(), 0};
    roads roads_;
    std::set<std::shared_ptr<link>> links_;
    std::optional<tcp::socket> port_; // holds it
    std::optional<tcp::acceptor> acceptor_;
    cable_loop loop_; // the last, because its handlers use the others until it ends
};

tcp_proxy::tcp_proxy(std::uint16_t server_port)
    : engine_{std::make_unique<engine>(server_port)} {}

tcp_proxy::~tcp_proxy() = default;

std::uint16_t tcp_proxy::port() const {
    return engine_->port();
}

void tcp_proxy::delay(milliseconds by, towards way) {
    engine_->run([&] { engine_->change(way, [by](road& r) { r.delay = by; }); });
}

void tcp_proxy::black_hole(towards way) {
    engine_->run([&] { engine_->change(way, [](road& r) { r.is_closed = true; }); });
}

void tcp_proxy::cut() {
    engine_->run([&] { engine_->cut(); });
}

void tcp_proxy::refuse() {
    engine_->run([&] { engine_->refuse(); });
}

void tcp_proxy::heal() {
    engine_->run([&] { engine_->heal(); });
}

std::size_t tcp_proxy::connections() const {
    std::size_t n = 0;
    engine_->run([&] { n = engine_->connections(); });
    return n;
}

std::uint64_t tcp_proxy::delivered(towards way) const {
    std::uint64_t n = 0;
    engine_->run([&] { n = engine_->delivered(way); });
    return n;
}

} // namespace presenced::tests
