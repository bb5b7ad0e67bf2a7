// One process full of clients: residents, who stay, and wanderers, who come and go in every way.
#pragma once

#include <string>

namespace presenced::tests {

// Runs until SIGTERM, at which everybody closes and the process ends. `plan` is JSON:
//   history, start_us   where to write, and since when time counts (steady clock)
//   process, seed       names its sessions "3.17"; everything random comes from the seed
//   doors               [[node, port]...]: where to connect
//   tokens              access tokens; the first one is never revoked
//   clients             [{id, agents, resident}...]; an empty list of agents means all `hot` ones
//   hot                 agents that wanderers fight for
//   ping_ms             how often a healthy node pings
int run_clients(std::string const& plan);

} // namespace presenced::tests
