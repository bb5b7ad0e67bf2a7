// Tells time in which this process ran from time in which it did not: stopped, swapped out,
// starved. Who judges a peer's silence needs it: the peer's answers may wait in the socket
// meanwhile. Pure: time is a parameter. Not thread-safe: a shard's own.
#pragma once

#include "presence/types.hpp"

#include <algorithm>

namespace presenced::server {

// A point in time as the process has lived it.
struct moment {
    presence::time_point now{};
    presence::duration slept{0};      // how much of the time up to now the process did not run
    presence::time_point thawed_at{}; // when it last went on
};

class uptime {
public:
    // `stall`: two calls of at() that are further apart mean that the process did not run between
    // them, for it calls more often.
    uptime(presence::time_point start, presence::duration stall)
        : at_{start, presence::duration{0}, {}}
        , stall_{stall} {}

    moment at(presence::time_point now) {
        if (now - at_.now > stall_) {
            at_.slept += now - at_.now;
            at_.thawed_at = now;
        }
        at_.now = std::max(at_.now, now);
        return at_;
    }

private:
    moment at_;
    presence::duration stall_;
};

} // namespace presenced::server
