#include "tests/support/node.hpp"

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace presenced::tests {

namespace {

environment with_defaults(environment settings) {
    // The kernel picks the port; the log says which.
    settings.emplace("PRESENCED_LISTEN", "127.0.0.1:0");
    settings.emplace("PRESENCED_LOG_LEVEL", "debug");
    return settings;
}

// Nothing until it is there.
std::optional<std::uint16_t> port_in(std::string const& log) {
    std::string_view const before = "app listening addresses=127.0.0.1:";
    auto const at = log.find(before);
    if (at == log.npos || log.find('\n', at) == log.npos) {
        return std::nullopt;
    }
    std::uint16_t port = 0;
    auto const* const first = log.data() + at + before.size();
    std::from_chars(first, log.data() + log.size(), port);
    return port;
}

} // namespace

std::string binary() {
    auto const* const given = std::getenv("PRESENCED_TEST_BINARY");
    return given != nullptr ? given : PRESENCED_BINARY;
}

node::node(environment settings)
    : process_{{binary(), "serve"}, with_defaults(std::move(settings))} {
    auto const listens = eventually([this] {
        if (auto const port = port_in(log())) {
            port_ = *port;
        }
        return port_ != 0 || process_.wait(0ms);
    });
    if (!listens || port_ == 0) {
        throw std::runtime_error{"presenced does not listen:\n" + log()};
    }
}

node::~node() {
    auto const text = log();
    if (text.find("Sanitizer") != text.npos || text.find("runtime error:") != text.npos) {
        std::fputs(text.c_str(), stderr);
        std::abort();
    }
}

void node::await_ready() {
    auto const ready =
        eventually([this] { return process_.wait(0ms) || get("/readyz").status == 200; });
    if (!ready || process_.wait(0ms)) {
        throw std::runtime_error{"presenced does not get ready:\n" + log()};
    }
}

std::map<std::string, double> node::metrics() const {
    std::map<std::string, double> samples;
    std::istringstream lines{get("/metrics").body};
    for (std::string line; std::getline(lines, line);) {
        auto const space = line.rfind(' ');
        if (line.empty() || line.front() == '#' || space == line.npos) {
            continue;
        }
        samples[line.substr(0, space)] = std::strtod(line.c_str() + space, nullptr);
    }
    return samples;
}

double node::metric(std::string const& sample) const {
    auto const samples = metrics();
    auto const it = samples.find(sample);
    return it == samples.end() ? 0 : it->second;
}

} // namespace presenced::tests
