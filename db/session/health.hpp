// How the database threads are doing, for /readyz and metrics.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace presenced::db {

struct store_health {
    bool reachable = false; // a statement succeeded on the newest attempt
    bool writable = false;  // ... and it could write
    std::string problem;    // why not, in one line; empty when all is well
    // Why this node must not serve although the database is there: its schema is not for this
    // binary, or has another stale_after than the node runs with. Empty when all is well.
    std::string unfit;
    bool stale_after_changed = false; // that is why; only a restart mends it
    // Since the newest tick that this node knows of, its own or another's, landed in the database:
    // longer than judge_window(), and lease time stands still. max() before the first.
    std::chrono::milliseconds since_tick = std::chrono::milliseconds::max();
    // Since the database could last be written to; counts from the start until it is.
    std::chrono::milliseconds unreachable_for{0};
    std::chrono::milliseconds oldest_renewal{0}; // age of the oldest request in the renewal queue
    std::chrono::milliseconds since_sweep = std::chrono::milliseconds::max(); // by this node
    struct queue {
        char const* lane;
        std::size_t depth;
    };
    std::vector<queue> queues;
};

} // namespace presenced::db
