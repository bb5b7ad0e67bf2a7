// The record of a run: one event a line, as JSON, with its time. Driver and client processes append
// to the same file, a line a write(), so that one that is killed or frozen loses nothing.
#pragma once

#include "tests/support/eventually.hpp"

#include <nlohmann/json.hpp>

#include <string>

namespace presenced::tests {

using json = nlohmann::json;

// Thread-safe.
class history {
public:
    // Appends; times are seconds since `start`, which is the same moment in every process (the
    // steady clock is the machine's). Throws std::runtime_error when it cannot be opened.
    history(std::string const& path, steady::time_point start);
    ~history();
    history(history const&) = delete;
    history& operator=(history const&) = delete;

    steady::time_point start() const { return start_; }
    double now() const { return seconds(steady::now()); }
    double seconds(steady::time_point at) const;

    // What happened, when, and to whom; the members are described in judge.py.
    void write(char const* what, double at, json fields = json::object());
    void write(char const* what, json fields = json::object()) {
        write(what, now(), std::move(fields));
    }

private:
    int file_ = -1;
    steady::time_point start_;
};

} // namespace presenced::tests
