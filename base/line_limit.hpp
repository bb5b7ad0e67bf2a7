// Bounds log lines that can come by the thousand.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace presenced::base {

// For lines that strangers can cause by the thousand: so many a second are written, the others are
// counted. Not thread-safe: one for each thread and kind of line.
class line_limit {
public:
    explicit line_limit(unsigned lines_a_second)
        : most_{lines_a_second} {}

    // Nothing: leave the line out. Else what belongs at its end: empty, or ` suppressed=N` after
    // lines that were left out.
    std::optional<std::string>
    admit(std::chrono::steady_clock::time_point now = std::chrono::steady_clock::now());

private:
    unsigned most_;
    unsigned written_ = 0; // in this second
    std::uint64_t suppressed_ = 0;
    std::int64_t second_ = 0;
};

} // namespace presenced::base
