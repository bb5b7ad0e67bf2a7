// How fast one node's store renews on one database: the store alone, no sockets.
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <string>

#include <sys/types.h>

namespace presenced::bench {

struct renewal_plan {
    std::string database; // migrated, with agents
    std::size_t leases = 15'000;
    std::size_t rounds = 20;
    pid_t postgres = 0; // the server's process, to say what it takes; 0: not
    // A snapshot that was taken ten minutes ago, as a backup holds one: since then every row has
    // been renewed 40 times, and none of these versions may be pruned.
    bool old_snapshot = false;
};

// Every lease is renewed again as soon as its renewal is answered. Throws std::runtime_error.
nlohmann::ordered_json renew(renewal_plan const& p);

} // namespace presenced::bench
