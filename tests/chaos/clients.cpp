#include "tests/chaos/clients.hpp"

#include "clients/cpp/cable_client.hpp"
#include "tests/chaos/history.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <algorithm>
#include <csignal>
#include <memory>
#include <random>
#include <variant>

namespace presenced::tests {

namespace {

namespace asio = boost::asio;

struct door {
    int node;
    std::uint16_t port;
};

struct surroundings {
    asio::io_context& io;
    history& log;
    int process;
    std::vector<door> doors;
    std::vector<std::string> tokens;
    std::vector<std::int64_t> hot;
    milliseconds ping;
    long sessions = 0;
    long subscriptions = 0;
};

class guest final : clients::cable_client_handler {
public:
    guest(surroundings& around, int id, std::vector<std::int64_t> agents, bool resident,
          unsigned seed)
        : around_{around}
        , id_{id}
        , agents_{agents.empty() ? around.hot : std::move(agents)}
        , resident_{resident}
        , patience_{id % 2 == 0 ? 6 * around.ping + 400ms : 10s}
        , random_{seed}
        , token_{static_cast<std::size_t>(id) % around.tokens.size()}
        , timer_{around.io}
        , watch_{around.io} {}

    void connect() {
        auto const& to = around_.doors[pick(around_.doors.size())];
        session_ = name(++around_.sessions);
        held_.clear();
        identifier_.clear();
        is_over_ = false;
        clients::cable_client_options options;
        options.port = to.port;
        options.token = around_.tokens[token_];
        clients::cable_client_handler& handler = *this;
        write("connect", {{"c", id_}, {"n", to.node}, {"p", around_.process}, {"k", token_}});
        client_ = std::make_unique<clients::cable_client>(around_.io, std::move(options), handler);
        client_->start();
        heard_ = steady::now();
        watch();
    }

    void leave() {
        leaving_ = true;
        timer_.cancel();
        if (client_ && client_->is_open()) {
            close();
        } else {
            end_by_itself("kill");
        }
    }
    bool is_gone() const { return leaving_ && (!client_ || is_over_); }

private:
    // ---- What it hears ----

    void on_message(protocol::server_message const& message) override {
        std::visit([this](auto const& m) { on(m); }, message);
    }

    void on(protocol::welcome_message const&) {
        write("welcome");
        heard_ = steady::now();
        come();
    }
    void on(protocol::ping_message const&) {
        auto const now = steady::now();
        if (now - heard_ > 3 * around_.ping) {
            note_gap();
        }
        heard_ = now;
    }
    void on(protocol::confirm_message const& m) {
        around_.log.write("confirm", {{"s", session_}, {"u", subscription_of(m.identifier)}});
        if (m.identifier == identifier_ && !leaving_) {
            settle();
        }
    }
    void on(protocol::reject_message const& m) {
        around_.log.write("reject", {{"s", session_}, {"u", subscription_of(m.identifier)}});
    }
    void on(protocol::disconnect_message const& m) {
        write("disconnect", {{"reason", m.reason}, {"reconnect", m.reconnect}});
        if (m.reason == "unauthorized" || m.reason == "token_expired") {
            token_ = 0;
        }
    }
    template <class Other>
    void on(Other const&) {}

    void on_refused(unsigned status, clients::header_list const&) override {
        is_over_ = true;
        write("refused", {{"status", status}});
        come_back();
    }
    void on_closed(std::uint16_t code, boost::system::error_code) override {
        is_over_ = true;
        write("closed", {{"code", code}});
        come_back();
    }

    // ---- What it does ----

    void come() {
        if (leaving_ || is_over_ || !client_->is_open()) {
            return;
        }
        subscribe();
        if (!resident_ && pick(6) == 0) {
            unsubscribe(); // not waiting for the confirmation
            if (pick(2) == 0) {
                subscribe();
            } else {
                soon(600, &guest::come);
            }
        } else if (resident_ && pick(3) == 0) {
            subscribe();
        }
    }

    // Confirmed: how long it stays.
    void settle() {
        if (resident_) {
            if (pick(4) == 0) {
                send_again();
            }
            timer_.expires_after(milliseconds{8'000 + pick(40'000)});
        } else {
            timer_.expires_after(milliseconds{20 + pick(1'500)});
        }
        timer_.async_wait([this](boost::system::error_code ec) {
            if (!ec && !leaving_ && !is_over_ && client_->is_open()) {
                go();
            }
        });
    }

    void go() {
        switch (pick(resident_ ? 6 : 12)) {
        case 0:
        case 1:
            close();
            break;
        case 2:
        case 3:
            end_by_itself("kill");
            come_back();
            break;
        case 4:
            mute();
            break;
        case 5:
            send_again();
            soon(500, &guest::go);
            break;
        default:
            unsubscribe();
            soon(400, &guest::come);
        }
    }

    void subscribe() {
        auto const agent = agents_[pick(agents_.size())];
        held_.push_back(name(++around_.subscriptions));
        identifier_ = identifier(agent, held_.back());
        around_.log.write("subscribe", {{"s", session_}, {"u", held_.back()}, {"a", agent}});
        client_->subscribe(identifier_);
        identifiers_[held_.back()] = identifier_;
    }
    void send_again() {
        if (!held_.empty()) {
            around_.log.write("again", {{"s", session_}, {"u", held_.back()}});
            client_->subscribe(identifiers_.at(held_.back()));
        }
    }
    void unsubscribe() {
        if (held_.empty()) {
            return;
        }
        around_.log.write("unsubscribe", {{"s", session_}, {"u", held_.back()}});
        client_->unsubscribe(identifiers_.at(held_.back()));
        identifiers_.erase(held_.back());
        held_.pop_back();
        identifier_.clear();
    }
    void close() {
        write("close");
        client_->close();
    }
    // Reads nothing for a while, and so answers nothing.
    void mute() {
        write("mute");
        client_->stop_reading();
        timer_.expires_after(milliseconds{300 + pick(6'000)});
        timer_.async_wait([this](boost::system::error_code ec) {
            if (ec || is_over_ || leaving_) {
                return;
            }
            write("unmute");
            heard_ = steady::now();
            client_->resume_reading();
            soon(3'000, &guest::go);
        });
    }
    // Ends the connection without a word, and hears no more of it.
    void end_by_itself(char const* how) {
        if (client_ && !std::exchange(is_over_, true)) {
            write(how);
            client_->kill();
            client_.reset();
        }
    }

    void come_back() {
        watch_.cancel();
        identifiers_.clear();
        soon(800, &guest::connect);
    }

    // Stock clients give a silent connection up after two pings; half of ours do, late.
    void watch() {
        watch_.expires_after(patience_);
        watch_.async_wait([this](boost::system::error_code ec) {
            if (ec || is_over_ || leaving_) {
                return;
            }
            if (since(heard_) >= patience_) {
                if (client_->is_open()) {
                    note_gap(); // nobody would miss pings that stop for good
                }
                timer_.cancel();
                end_by_itself("kill");
                come_back();
            } else {
                watch();
            }
        });
    }

    void note_gap() {
        auto const gap = std::chrono::duration<double>(steady::now() - heard_).count();
        write("gap", {{"for", gap}});
    }

    void soon(std::size_t within_ms, void (guest::*what)()) {
        if (leaving_) {
            return;
        }
        timer_.expires_after(milliseconds{30 + pick(within_ms)});
        timer_.async_wait([this, what](boost::system::error_code ec) {
            if (!ec && !leaving_ && (!is_over_ || what == &guest::connect)) {
                (this->*what)();
            }
        });
    }

    // ---- Names ----

    std::string name(long number) const {
        return std::to_string(around_.process) + '.' + std::to_string(number);
    }
    static std::string subscription_of(std::string const& identifier) {
        return json::parse(identifier).value("session_id", "");
    }
    void write(char const* what, json fields = json::object()) {
        fields["s"] = session_;
        around_.log.write(what, std::move(fields));
    }
    std::size_t pick(std::size_t n) {
        return std::uniform_int_distribution<std::size_t>{0, n - 1}(random_);
    }

    surroundings& around_;
    int id_;
    std::vector<std::int64_t> agents_;
    bool resident_;
    milliseconds patience_;
    std::minstd_rand random_;
    std::size_t token_;
    asio::steady_timer timer_;
    asio::steady_timer watch_;
    std::unique_ptr<clients::cable_client> client_;
    std::string session_;
    std::vector<std::string> held_;                  // subscriptions, the newest last
    std::map<std::string, std::string> identifiers_; // of those
    std::string identifier_;                         // of the newest
    steady::time_point heard_;
    bool is_over_ = true;
    bool leaving_ = false;
};

// How late this process's own timers are: what it says of others is late by as much.
class punctuality {
public:
    explicit punctuality(surroundings& around)
        : around_{around}
        , timer_{around.io} {
        watch();
    }
    void stop() { timer_.cancel(); }

private:
    void watch() {
        constexpr auto every = 20ms;
        auto const due = steady::now() + every;
        timer_.expires_at(due);
        timer_.async_wait([this, due](boost::system::error_code ec) {
            if (ec) {
                return;
            }
            auto const late = std::chrono::duration<double>(steady::now() - due).count();
            if (late > 0.03) {
                around_.log.write("stall", around_.log.seconds(due),
                                  {{"who", "p" + std::to_string(around_.process)}, {"for", late}});
            }
            watch();
        });
    }

    surroundings& around_;
    asio::steady_timer timer_;
};

} // namespace

int run_clients(std::string const& plan) {
    auto const p = json::parse(plan);
    steady::time_point const start{std::chrono::microseconds{p.at("start_us").get<long>()}};
    history log{p.at("history").get<std::string>(), start};
    asio::io_context io{1};
    surroundings around{io, log, p.at("process"), {}, {}, {}, milliseconds{p.at("ping_ms")}};
    for (auto const& d : p.at("doors")) {
        around.doors.push_back({d.at(0), d.at(1)});
    }
    around.tokens = p.at("tokens").get<std::vector<std::string>>();
    around.hot = p.at("hot").get<std::vector<std::int64_t>>();
    std::minstd_rand random{p.at("seed").get<unsigned>()};
    std::vector<std::unique_ptr<guest>> guests;
    for (auto const& c : p.at("clients")) {
        guests.push_back(std::make_unique<guest>(
            around, c.at("id").get<int>(), c.at("agents").get<std::vector<std::int64_t>>(),
            c.at("resident").get<bool>(), static_cast<unsigned>(random())));
        guests.back()->connect();
    }
    punctuality clock{around};
    asio::signal_set ends{io, SIGTERM};
    asio::steady_timer look{io};
    auto const deadline = std::make_shared<steady::time_point>();
    std::function<void()> check = [&] {
        auto const gone =
            std::all_of(guests.begin(), guests.end(), [](auto const& g) { return g->is_gone(); });
        if (gone || steady::now() > *deadline) {
            io.stop();
            return;
        }
        look.expires_after(20ms);
        look.async_wait([&](boost::system::error_code) { check(); });
    };
    ends.async_wait([&](boost::system::error_code, int) {
        for (auto const& g : guests) {
            g->leave();
        }
        *deadline = steady::now() + 5s;
        check();
    });
    io.run();
    return 0;
}

} // namespace presenced::tests
