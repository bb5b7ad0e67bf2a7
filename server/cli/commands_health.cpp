#include "server/cli/commands_health.hpp"

#include "server/cli/url.hpp"

#include <boost/asio/ip/tcp.hpp>
#include <nlohmann/json.hpp>

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

int health_command(config_source const& source, std::optional<std::string> const& given,
                   bool json) {
    std::vector<url> candidates;
    if (given) {
        candidates.push_back(parse_url(*given, {"http"}, "/healthz", "--url"));
    } else {
        for (auto const& e : reachable_at(parse_listen(source))) {
            candidates.push_back({"http", e.address, e.port, "/healthz"});
        }
    }
    std::string problems;
    nlohmann::ordered_json asked = nlohmann::ordered_json::array();
    bool healthy = false;
    for (auto at = candidates.begin(); at != candidates.end() && !healthy; ++at) {
        auto const problem = ask(*at);
        healthy = problem.empty();
        asked.push_back({{"url", at->show()}, {"problem", nullptr}});
        if (!healthy) {
            asked.back()["problem"] = problem;
            problems += "presenced: " + at->show() + ": " + problem + '\n';
        }
    }
    if (json) {
        nlohmann::ordered_json const answer{{"healthy", healthy}, {"asked", asked}};
        using error_handler = nlohmann::ordered_json::error_handler_t;
        std::cout << answer.dump(2, ' ', false, error_handler::replace) << '\n';
    } else if (healthy) {
        std::cout << "ok " << candidates[asked.size() - 1].show() << '\n';
    } else {
        std::cerr << problems;
    }
    return healthy ? 0 : 1;
}

} // namespace presenced::server
