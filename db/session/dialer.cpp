#include "db/session/dialer.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <optional>
#include <random>
#include <stdexcept>
#include <string_view>
#include <vector>

#include <netdb.h>
#include <poll.h>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds longest_timeout{30};
// How often a connect under way asks whether it is still wanted.
constexpr milliseconds poll_interval{100};
// What an empty item in a list of ports stands for (PostgreSQL docs, "Connection Strings").
constexpr auto default_port = "5432";

using options = std::map<std::string, std::string>;

void overlay(options& onto, PQconninfoOption* given) {
    std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> const owned{given,
                                                                             &PQconninfoFree};
    for (auto const* o = given; o != nullptr && o->keyword != nullptr; ++o) {
        if (o->val != nullptr) {
            onto[o->keyword] = o->val;
        }
    }
}

// What libpq will go by; nothing when it does not understand the string.
std::optional<options> options_of(std::string const& conninfo) {
    options all;
    overlay(all, PQconndefaults());
    auto* const given = PQconninfoParse(conninfo.c_str(), nullptr);
    if (given == nullptr) {
        return std::nullopt;
    }
    overlay(all, given);
    return all;
}

std::vector<std::string> items(std::string const& list) {
    std::vector<std::string> found;
    for (std::size_t at = 0; at <= list.size();) {
        auto const end = std::min(list.find(',', at), list.size());
        found.push_back(list.substr(at, end - at));
        at = end + 1;
    }
    return found;
}

// One place to connect to, as parameters that count over those of the connection string.
struct address {
    std::string host;
    std::string hostaddr;
    std::string port;
};

std::vector<std::string> resolve(std::string const& host) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    if (::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) {
        return {""}; // for libpq to say so
    }
    std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> const owned{found, &freeaddrinfo};
    std::vector<std::string> numbers;
    for (auto const* a = found; a != nullptr; a = a->ai_next) {
        char text[NI_MAXHOST];
        if (::getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, nullptr, 0,
                          NI_NUMERICHOST) == 0) {
            numbers.emplace_back(text);
        }
    }
    return numbers.empty() ? std::vector<std::string>{""} : numbers;
}

// libpq gives a host as long as its connect_timeout only while it waits by itself; nor can it be
// told to go on to the next one. So it gets them one by one.
std::vector<address> addresses_of(options const& all) {
    auto const value = [&](char const* name) {
        auto const found = all.find(name);
        return found == all.end() ? std::string{} : found->second;
    };
    auto const hosts = items(value("host"));
    auto const numbers = items(value("hostaddr"));
    auto const ports = items(value("port"));
    auto const count = std::max(hosts.size(), numbers.size());
    auto const at = [](std::vector<std::string> const& list, std::size_t i) {
        return list.size() == 1 ? list[0] : i < list.size() ? list[i] : std::string{};
    };
    std::vector<address> found;
    for (std::size_t i = 0; i < count; ++i) {
        address one{at(hosts, i), at(numbers, i), at(ports, i)};
        if (one.port.empty()) {
            one.port = default_port;
        }
        bool const is_name =
            one.hostaddr.empty() && !one.host.empty() && one.host[0] != '/' && one.host[0] != '@';
        for (auto const& number : is_name ? resolve(one.host) : std::vector{one.hostaddr}) {
            found.push_back({one.host, number, one.port});
        }
    }
    if (value("load_balance_hosts") == "random") {
        std::shuffle(found.begin(), found.end(), std::minstd_rand{std::random_device{}()});
    }
    return found;
}

milliseconds timeout_of(options const& all) {
    auto const found = all.find("connect_timeout");
    auto const given = found == all.end() ? 0 : std::atoi(found->second.c_str());
    return given <= 0 ? longest_timeout : std::min(longest_timeout, std::chrono::seconds{given});
}

// Until it stands. Throws when it fails, takes too long, or is not wanted any more.
void see_through(PGconn* link, milliseconds timeout, stop_signal& stop) {
    auto const deadline = steady_clock::now() + timeout;
    auto state = PGRES_POLLING_WRITING;
    while (state != PGRES_POLLING_OK) {
        if (state == PGRES_POLLING_FAILED || PQstatus(link) == CONNECTION_BAD) {
            throw std::runtime_error{PQerrorMessage(link)};
        }
        if (stop.is_raised()) {
            throw std::runtime_error{"stopped while connecting"};
        }
        auto const left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now());
        if (left.count() <= 0) {
            auto const text = [](char const* given) {
                return std::string{given != nullptr ? given : ""};
            };
            throw std::runtime_error{"no answer from " + text(PQhost(link)) + " port " +
                                     text(PQport(link)) + " within " +
                                     std::to_string(timeout.count()) + " ms"};
        }
        pollfd ready{PQsocket(link),
                     state == PGRES_POLLING_READING ? short{POLLIN} : short{POLLOUT}, 0};
        if (::poll(&ready, 1, static_cast<int>(std::min(left, poll_interval).count())) > 0) {
            state = PQconnectPoll(link);
        }
    }
}

raw_link dial_one(std::string const& conninfo, address const& to, std::string const& attributes,
                  milliseconds timeout, stop_signal& stop) {
    // The first is taken apart; what comes behind it counts over it, unless it is empty.
    std::vector<char const*> keywords{"dbname", "host", "hostaddr", "port"};
    std::vector<char const*> values{conninfo.c_str(), to.host.c_str(), to.hostaddr.c_str(),
                                    to.port.c_str()};
    if (!attributes.empty()) {
        keywords.push_back("target_session_attrs");
        values.push_back(attributes.c_str());
    }
    keywords.push_back(nullptr);
    values.push_back(nullptr);
    raw_link link{PQconnectStartParams(keywords.data(), values.data(), 1)};
    if (!link) {
        throw std::bad_alloc{};
    }
    see_through(link.get(), timeout, stop);
    return link;
}

} // namespace

raw_link dial(std::string const& conninfo, stop_signal& stop) {
    auto const all = options_of(conninfo);
    // A service file may name the host; libpq alone reads it, and goes through its hosts itself.
    bool const opaque = !all || all->contains("service");
    auto const to = opaque ? std::vector<address>{{}} : addresses_of(*all);
    auto const timeout = all ? timeout_of(*all) : milliseconds{longest_timeout};
    // Of several servers one is the primary, and the first that answers may be another.
    bool const takes_any = !opaque && all->contains("target_session_attrs") &&
                           all->at("target_session_attrs") == "any"; // libpq's default
    std::string const attributes = to.size() > 1 && takes_any ? "primary" : "";
    std::string problem = "the connection string names no host";
    for (auto const& one : to) {
        try {
            return dial_one(conninfo, one, attributes, timeout, stop);
        } catch (std::runtime_error const& e) {
            problem = e.what();
            if (stop.is_raised()) {
                throw;
            }
        }
    }
    throw std::runtime_error{problem};
}

} // namespace presenced::db
