// What many leases cost one database while nothing else happens, and how long a flip takes
// meanwhile: stores alone, no sockets.
#pragma once

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstddef>
#include <string>

#include <sys/types.h>

namespace presenced::bench {

struct hold_plan {
    std::string database; // migrated, with an agent a lease and `flipping` more
    std::size_t leases = 100'000;
    std::size_t nodes = 1; // stores that share the leases, all in this process
    std::chrono::seconds length{60};
    std::size_t flipping = 100; // agents that go on and off, one at a time
    pid_t postgres = 0;         // the server's process, to say what it takes; 0: not
};

// Every lease is renewed every 15 s, as a node does whose clients answer. Throws
// std::runtime_error.
nlohmann::ordered_json hold(hold_plan const& p);

} // namespace presenced::bench
