#include "tests/support/swarm.hpp"

#include "tests/support/world.hpp"

#include <boost/asio/steady_timer.hpp>

#include <algorithm>
#include <type_traits>
#include <variant>

#include <sys/resource.h>

namespace presenced::tests {

namespace {

// One address has 28,000 ports for one destination, and the kernel's search gets slow before that.
constexpr std::size_t addresses = 8;

} // namespace

std::size_t raise_descriptor_limit() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

// Everything on the loop's thread.
struct swarm::member final : clients::cable_client_handler {
    member(swarm& all, clients::cable_client_options options, std::int64_t agent)
        : all_{all}
        , options_{std::move(options)}
        , identifier_{identifier(agent)}
        , pause_{all.loop_.context()} {}

    void start() {
        started_ = steady::now();
        opened_ = false;
        client = std::make_unique<clients::cable_client>(all_.loop_.context(), options_, *this);
        client->start();
    }

    void on_message(protocol::server_message const& message) override {
        std::visit([this](auto const& m) { on(m); }, message);
    }

    void on_open(std::string_view) override {
        count([](counts& c) { ++c.opened; });
        opened_ = true;
    }

    void on_refused(unsigned, clients::header_list const&) override {
        count([](counts& c) { ++c.refused; });
        settle();
        come_back();
    }

    void on_closed(std::uint16_t, boost::system::error_code) override {
        count([this](counts& c) {
            ++(opened_ ? c.closed : c.refused);
            c.standing -= std::exchange(confirmed_, false) ? 1U : 0U;
        });
        settle();
        come_back();
    }

private:
    void on(protocol::welcome_message const&) { client->subscribe(identifier_); }
    void on(protocol::confirm_message const&) {
        count([this](counts& c) {
            ++c.confirmed;
            ++c.standing;
            confirmed_ = true;
            all_.latencies_.push_back(since(started_));
        });
        settle();
    }
    void on(protocol::reject_message const&) {
        count([](counts& c) { ++c.rejected; });
        settle();
    }
    void on(protocol::disconnect_message const& m) {
        count([&](counts& c) { ++c.disconnects[m.reason]; });
    }
    template <class Other>
    void on(Other const&) {}

    template <class Change>
    void count(Change change) {
        std::lock_guard const lock{all_.mutex_};
        change(all_.counts_);
    }

    void settle() {
        if (!std::exchange(settled_, true)) {
            all_.settled();
        }
    }

    void come_back() {
        if (!all_.comes_back_) {
            return;
        }
        pause_.expires_after(*all_.comes_back_);
        pause_.async_wait([this](boost::system::error_code ec) {
            if (!ec) {
                start();
            }
        });
    }

    swarm& all_;
    clients::cable_client_options options_;
    std::string identifier_;
    boost::asio::steady_timer pause_;
    steady::time_point started_{};
    bool opened_ = false;
    bool confirmed_ = false;
    bool settled_ = false;

public:
    std::unique_ptr<clients::cable_client> client; // none before start()
};

swarm::swarm(cable_loop& loop, clients::cable_client_options options,
             std::vector<std::int64_t> const& agents, std::size_t size, std::size_t at_once,
             std::optional<milliseconds> comes_back)
    : loop_{loop}
    , size_{size}
    , comes_back_{comes_back} {
    loop_.run([&] {
        for (std::size_t i = 0; i < size; ++i) {
            options.bind_address = "127.0.0." + std::to_string(2 + i % addresses);
            members_.push_back(std::make_unique<member>(*this, options, agents[i % agents.size()]));
        }
        for (std::size_t i = 0; i < at_once; ++i) {
            start_next();
        }
    });
}

swarm::~swarm() {
    loop_.run([&] { members_.clear(); });
}

void swarm::start_next() {
    if (started_ < members_.size()) {
        members_[started_++]->start();
    }
}

void swarm::settled() {
    {
        std::lock_guard const lock{mutex_};
        ++settled_;
    }
    start_next();
}

swarm::counts swarm::look() const {
    std::lock_guard const lock{mutex_};
    return counts_;
}

bool swarm::has_settled() const {
    std::lock_guard const lock{mutex_};
    return settled_ == size_;
}

std::vector<milliseconds> swarm::latencies() const {
    std::lock_guard const lock{mutex_};
    auto sorted = latencies_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
}

void swarm::close_all() {
    close(0, size_);
}

template <class Act>
void swarm::each(std::size_t first, std::size_t count, Act act) {
    loop_.run([&] {
        for (auto i = first; i < first + count; ++i) {
            if (auto& client = members_[i]->client) {
                act(*client);
            }
        }
    });
}

void swarm::close(std::size_t first, std::size_t count) {
    each(first, count, [](clients::cable_client& c) { c.close(); });
}

void swarm::kill(std::size_t first, std::size_t count) {
    each(first, count, [](clients::cable_client& c) { c.kill(); });
}

void swarm::freeze(std::size_t first, std::size_t count) {
    each(first, count, [](clients::cable_client& c) { c.stop_reading(); });
}

} // namespace presenced::tests
