// The scenarios that load a server over its socket. Each returns what it measured.
#pragma once

#include "bench/machine.hpp"
#include "bench/swarm.hpp"

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace presenced::bench {

using json = nlohmann::ordered_json;

struct plan {
    target to;
    std::vector<identity> identities;
    std::size_t sessions = 1000;
    swarm_limits limits;
    std::chrono::seconds limit{120};        // for the whole scenario to get somewhere
    std::chrono::seconds hold{30};          // idle, churn: how long
    std::size_t per_second = 100;           // churn: joins, and as many leaves
    std::size_t rounds = 200;               // lone: how often
    std::map<std::string, pid_t> processes; // whose cost is measured
    std::optional<std::string> database;    // URL
};

// All sessions at once: from the first connect() to the last confirmation.
json storm(plan const& p);
// All sessions are confirmed, lost without a close, and back at once.
json avalanche(plan const& p);
// All sessions are confirmed and do nothing.
json idle(plan const& p);
// All sessions are confirmed; then some come and as many go, every second.
json churn(plan const& p);
// One session at a time on a server with nothing else to do. Needs the database.
json lone(plan const& p);

} // namespace presenced::bench
