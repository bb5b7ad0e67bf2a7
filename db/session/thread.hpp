// How a database thread goes on after an exception.
#pragma once

#include "base/line_limit.hpp"
#include "db/session/stop_signal.hpp"

#include <chrono>
#include <exception>

namespace presenced::db {

// Writes one line about an exception that a database thread has caught, and no more than one a
// second. Does not throw. One for each thread.
class exception_log {
public:
    explicit exception_log(char const* lane)
        : lane_{lane} {}
    void write(std::exception const& e) noexcept;

private:
    char const* lane_;
    base::line_limit lines_{1};
};

// Calls `step` until it returns false. An exception (a bug, or no memory) ends that step only:
// `recover` puts down what the step had in hand, and the next step follows after a pause. Neither
// `recover` nor what it calls may throw.
template <class Step, class Recover>
void keep_going(char const* lane, stop_signal& stop, Step step, Recover recover) {
    constexpr std::chrono::milliseconds pause{100};
    exception_log log{lane};
    for (;;) {
        try {
            if (!step()) {
                return;
            }
            continue;
        } catch (std::exception const& e) {
            log.write(e);
        }
        recover();
        if (stop.wait_for(pause)) {
            return;
        }
    }
}

} // namespace presenced::db
