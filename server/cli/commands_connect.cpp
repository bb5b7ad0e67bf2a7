#include "server/cli/commands_connect.hpp"

#include "base/text.hpp"
#include "clients/cpp/cable_client.hpp"
#include "protocol/codec.hpp"
#include "server/cli/url.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <strings.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <variant>

namespace presenced::server {

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using boost::system::error_code;

// The server pings every 3 s; whoever says nothing for this long is gone.
constexpr auto longest_silence = 15s;
constexpr auto longest_pause = 60s;

template <class... F>
struct overloaded : F... {
    using F::operator()...;
};
template <class... F>
overloaded(F...) -> overloaded<F...>; // clang 14 wants it spelt out

// One line an event, at once.
void say(std::string_view line) {
    std::cout << line << std::endl;
}
void complain(std::string_view line) {
    std::cerr << "presenced: " << line << std::endl;
}

class session final : public clients::cable_client_handler {
public:
    session(url where, std::string token, connect_options const& options)
        : where_{std::move(where)}
        , token_{std::move(token)}
        , options_{options} {
        for (auto const agent : options.agents) {
            auto identifier =
                protocol::encode_identifier(options.channel, agent, options.session_id);
            agents_.emplace(std::move(identifier), agent);
        }
    }

    int run() {
        await_signal();
        connect();
        io_.run();
        return exit_code_;
    }

private:
    void connect() {
        clients::cable_client_options o;
        o.host = where_.host;
        o.port = where_.port;
        o.target = where_.target;
        o.token = token_;
        retry_after_ = 0s;
        told_to_go_.reset();
        confirmed_ = 0;
        rejected_ = 0;
        client_ = std::make_unique<clients::cable_client>(io_, std::move(o), *this);
        client_->start();
    }

    void await_signal() {
        signals_.async_wait([this](error_code ec, int) {
            if (ec) {
                return;
            }
            if (leaving_ || !client_ || !client_->is_open()) {
                finish(leaving_ ? 1 : 0);
                return;
            }
            leaving_ = true;
            client_->close();
            await_signal();
        });
    }

    void finish(int code) {
        exit_code_ = code;
        signals_.cancel();
        timer_.cancel();
        client_.reset();
    }

    void on_open(std::string_view) override {
        was_connected_ = true;
        watch();
    }

    void on_text(std::string_view text) override {
        watch();
        auto const message = protocol::decode_server_frame(text);
        if (options_.json &&
            !(message && std::holds_alternative<protocol::ping_message>(*message))) {
            say(text);
        }
        if (message) {
            on_message(*message);
        }
    }

    void on_message(protocol::server_message const& message) override {
        std::visit(overloaded{[this](protocol::welcome_message const&) {
                                  failures_ = 0;
                                  tell("connected  " + where_.show());
                                  for (auto const& [identifier, agent] : agents_) {
                                      client_->subscribe(identifier);
                                  }
                              },
                              [](protocol::ping_message const&) {},
                              [this](protocol::confirm_message const& m) {
                                  ++confirmed_;
                                  tell("routing on  agent=" + agent_of(m.identifier));
                              },
                              [this](protocol::reject_message const& m) { rejected(m); },
                              [this](protocol::stream_message const& m) {
                                  tell("message  agent=" + agent_of(m.identifier) + "  " +
                                       base::printable(m.json));
                              },
                              [this](protocol::disconnect_message const& m) {
                                  told_to_go_ = m;
                                  tell("disconnect  reason=" + base::printable(m.reason) +
                                       " reconnect=" + (m.reconnect ? "true" : "false"));
                              }},
                   message);
    }

    void rejected(protocol::reject_message const& m) {
        ++rejected_;
        tell("rejected  agent=" + agent_of(m.identifier));
        complain("agent " + agent_of(m.identifier) +
                 " was rejected: there is no such agent, or it is not of the token's owner, or "
                 "the server does not know channel " +
                 options_.channel +
                 ". `presenced agent list` and `presenced token list` show "
                 "agents, tokens and owners");
        if (rejected_ == agents_.size() && confirmed_ == 0) {
            leaving_ = true;
            exit_code_ = 1;
            client_->close();
        }
    }

    void on_refused(unsigned status, clients::header_list const& headers) override {
        std::string why;
        switch (status) {
        case 404:
            why = "no cable is served at this path, or this Origin is not allowed; the server's "
                  "log says which, and PRESENCED_PATH where it serves";
            break;
        case 429:
            why = "this token was refused again and again; check PRESENCED_TOKEN "
                  "(`presenced token list`) and wait a minute";
            break;
        case 503:
            retry_after_ = retry_after_of(headers);
            lost("the server cannot take clients just now (HTTP 503; its /readyz says why)");
            return;
        default:
            why = "is this presenced?";
        }
        complain(where_.show() + " refused with HTTP " + std::to_string(status) + ": " + why);
        finish(1);
    }

    void on_closed(std::uint16_t code, error_code error) override {
        if (leaving_) {
            finish(exit_code_);
        } else if (told_to_go_ && !told_to_go_->reconnect) {
            complain(told_to_go_->reason == "unauthorized" || told_to_go_->reason == "token_expired"
                         ? "PRESENCED_TOKEN is unknown, expired or revoked: `presenced token list` "
                           "shows which there are, `presenced token issue --owner N` makes one"
                         : "the server does not want this client back: " +
                               base::printable(told_to_go_->reason));
            finish(1);
        } else if (!was_connected_) {
            complain("cannot connect to " + where_.show() + ": " + error.message() +
                     "; is the server running there? (`presenced health`)");
            finish(1);
        } else if (told_to_go_) {
            lost("the server closed the connection (" + base::printable(told_to_go_->reason) + ")");
        } else if (error) {
            lost("the connection was lost (" + error.message() + ")");
        } else {
            lost("the server closed the connection (code " + std::to_string(code) + ")");
        }
    }

    void lost(std::string const& why) {
        if (options_.once) {
            complain(why);
            finish(1);
            return;
        }
        auto const pause = std::max<std::chrono::seconds>(
            std::min<std::chrono::seconds>(1s * (1 << std::min(failures_, 6)), longest_pause),
            retry_after_);
        ++failures_;
        complain(why + "; next try in " + std::to_string(pause.count()) + "s");
        timer_.expires_after(pause);
        timer_.async_wait([this](error_code ec) {
            if (!ec) {
                connect();
            }
        });
    }

    // From the last sign of the server on.
    void watch() {
        timer_.expires_after(longest_silence);
        timer_.async_wait([this](error_code ec) {
            if (!ec && client_) {
                client_->kill();
            }
        });
    }

    static std::chrono::seconds retry_after_of(clients::header_list const& headers) {
        for (auto const& [name, value] : headers) {
            if (strcasecmp(name.c_str(), "Retry-After") == 0) {
                return std::chrono::seconds{std::clamp(std::atoi(value.c_str()), 0, 60)};
            }
        }
        return 0s;
    }

    std::string agent_of(std::string const& identifier) const {
        auto const it = agents_.find(identifier);
        return it != agents_.end() ? std::to_string(it->second) : base::printable(identifier);
    }

    void tell(std::string const& line) {
        if (!options_.json) {
            say(line);
        }
    }

    url where_;
    std::string token_;
    connect_options const& options_;
    std::map<std::string, std::int64_t> agents_; // by identifier
    asio::io_context io_{1};
    asio::signal_set signals_{io_, SIGINT, SIGTERM};
    asio::steady_timer timer_{io_};
    std::unique_ptr<clients::cable_client> client_;
    std::optional<protocol::disconnect_message> told_to_go_;
    std::chrono::seconds retry_after_{0};
    std::size_t confirmed_ = 0;
    std::size_t rejected_ = 0;
    int failures_ = 0; // in a row
    bool was_connected_ = false;
    bool leaving_ = false;
    int exit_code_ = 0;
};

url find_server(config_source const& source, connect_options const& options) {
    if (options.url) {
        auto where = parse_url(*options.url, {"ws", "http"}, parse_path(source), "URL");
        if (where.target.find("token=") != where.target.npos) {
            throw bad_setting{"URL holds a token, which everybody on this machine can read in the "
                              "process list; allowed: the token in PRESENCED_TOKEN"};
        }
        return where;
    }
    auto const first = reachable_at(parse_listen(source)).front();
    return {"ws", first.address, first.port, parse_path(source)};
}

} // namespace

int connect_command(config_source const& source, connect_options const& options) {
    auto const token = source.environment.find("PRESENCED_TOKEN");
    if (token == source.environment.end() || token->second.empty()) {
        throw bad_setting{"PRESENCED_TOKEN is not set; allowed: an access token, as "
                          "`presenced token issue --owner N` prints it"};
    }
    return session{find_server(source, options), token->second, options}.run();
}

} // namespace presenced::server
