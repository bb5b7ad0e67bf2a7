// The timings of tests that run in full size, too, as they are in this run.
#pragma once

#include "tests/support/scale.hpp"
#include "tests/support/world.hpp"

namespace presenced::tests {

inline auto const heartbeat = scaled(15s);
inline auto const stale_after = scaled(45s);
inline auto const sweep = scaled(5s);
inline auto const peer_timeout = scaled(30s);
inline constexpr milliseconds slack{1'000};

} // namespace presenced::tests
