// One presenced server: the real binary, started by a test, on a port of its own.
#pragma once

#include "tests/support/process.hpp"
#include "tests/support/raw_http.hpp"

#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace presenced::tests {

// What operators are told to give a node beyond PRESENCED_DRAIN_TIMEOUT before they kill it
// (docs/operations.md, "Drain"), whatever its database does.
constexpr milliseconds after_drain_timeout{5'000};

class node {
public:
    // `presenced serve`; `settings` are environment variables. Returns once it listens, which is
    // before it is ready. Throws std::runtime_error with its log when it does not.
    explicit node(environment settings);
    // Kills it. Ends the test program when a sanitizer has found something in the node, which
    // nobody would see otherwise.
    ~node();

    // Waits for /readyz. Throws std::runtime_error with its log when that takes too long.
    void await_ready();

    std::uint16_t port() const { return port_; }
    pid_t pid() const { return process_.pid(); }
    std::string log() const { return process_.errors(); }
    // Waits a moment for it: a line may be written a little after what it is about.
    bool log_has(std::string_view text) const {
        return eventually([&] { return log().find(text) != std::string::npos; });
    }

    void signal(int number) const { process_.signal(number); }
    // Exit code, or 128 + signal; nothing if it still runs after `limit`.
    std::optional<int> wait(milliseconds limit = patience) { return process_.wait(limit); }

    http_answer get(std::string const& target) const { return http_request(port_, target); }
    // Every sample of /metrics, by name and labels as they are printed.
    std::map<std::string, double> metrics() const;
    // One of them; 0 while it is not there yet, which is what a counter means by that.
    double metric(std::string const& sample) const;

private:
    process process_;
    std::uint16_t port_ = 0;
};

// The path of the binary under test; PRESENCED_TEST_BINARY names another one.
std::string binary();

} // namespace presenced::tests
