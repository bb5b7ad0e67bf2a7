// Waiting in tests: by looking again and again until a deadline, never by a fixed time.
#pragma once

#include "tests/support/postgres.hpp"

#include <chrono>
#include <functional>

namespace presenced::tests {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using steady = std::chrono::steady_clock;

// How long a test waits for what should be there soon. Generous: it is only used up by failures.
inline constexpr milliseconds patience{20'000};

// Whether `holds` is true at every look for as long as `span`: for what must not happen.
inline bool always(std::function<bool()> const& holds, milliseconds span) {
    return !eventually([&] { return !holds(); }, span);
}

inline milliseconds since(steady::time_point then) {
    return std::chrono::duration_cast<milliseconds>(steady::now() - then);
}

} // namespace presenced::tests
