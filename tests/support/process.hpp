// A child process: starts a program, keeps what it writes, signals it, waits for its end.
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <sys/types.h>

namespace presenced::tests {

using environment = std::map<std::string, std::string>;

class process {
public:
    // Starts command[0] with this process's environment, less what presenced and libpq read from
    // it, plus `extra`. The child is killed when the thread that started it ends. With `errors`, a
    // descriptor, its stderr goes there.
    process(std::vector<std::string> const& command, environment const& extra, int errors = -1);
    // Kills it, if it still runs.
    ~process();
    process(process const&) = delete;
    process& operator=(process const&) = delete;

    pid_t pid() const { return pid_; }
    void signal(int number) const;

    // The exit code, or 128 + the signal that ended it; nothing if it still runs after `limit`.
    std::optional<int> wait(std::chrono::milliseconds limit);

    // What it has written so far.
    std::string output() const;
    std::string errors() const;

private:
    pid_t pid_ = -1;
    int handle_ = -1; // pidfd: becomes readable at its end
    int output_ = -1;
    int errors_ = -1;
    std::optional<int> code_;
};

struct finished {
    int code;
    std::string output;
    std::string errors;
};
// Runs a program to its end. Throws std::runtime_error when it takes longer than `limit`.
finished run(std::vector<std::string> const& command, environment const& extra = {},
             std::chrono::milliseconds limit = std::chrono::seconds{60});

} // namespace presenced::tests
