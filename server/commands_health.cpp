#include "server/commands_health.hpp"

#include "server/url.hpp"

#include <boost/asio/ip/tcp.hpp>

#include <charconv>
#include <chrono>
#include <iostream>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// Empty when the answer is 200, else what came instead.
std::string ask(url const& where) {
    boost::asio::ip::tcp::iostream stream;
    stream.expires_after(5s);
    stream.connect(where.host, std::to_string(where.port));
    stream << "GET " << where.target
           << " HTTP/1.1\r\nHost: " << to_string(endpoint{where.host, where.port})
           << "\r\nUser-Agent: presenced-health\r\nConnection: close\r\n\r\n"
           << std::flush;
    std::string version;
    std::string line;
    unsigned status = 0;
    stream >> version >> status;
    std::getline(stream, line);
    if (!stream || !version.starts_with("HTTP/")) {
        return stream.error() ? stream.error().message() : "the answer is not HTTP";
    }
    if (status == 200) {
        return {};
    }
    while (std::getline(stream, line) && line != "\r") {
    }
    std::string why;
    std::getline(stream, why);
    return "HTTP " + std::to_string(status) + (why.empty() ? "" : ": " + why);
}

} // namespace

int health_command(config_source const& source, std::optional<std::string> const& given) {
    std::vector<url> candidates;
    if (given) {
        candidates.push_back(parse_url(*given, {"http"}, "/healthz", "--url"));
    } else {
        for (auto const& e : reachable_at(parse_listen(source))) {
            candidates.push_back({"http", e.address, e.port, "/healthz"});
        }
    }
    std::string problems;
    for (auto const& where : candidates) {
        auto const problem = ask(where);
        if (problem.empty()) {
            std::cout << "ok " << where.show() << '\n';
            return 0;
        }
        problems += "presenced: " + where.show() + ": " + problem + '\n';
    }
    std::cerr << problems;
    return 1;
}

} // namespace presenced::server
