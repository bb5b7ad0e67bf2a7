// One presenced process, from start to exit: wiring, and the order of starting and stopping.
#pragma once

#include "server/config.hpp"

namespace presenced::server {

// Serves until SIGTERM or SIGINT. Returns the exit code:
//   0  drained: every client was told, every lease released
//   1  could not start, or gave up draining (deadline, second signal) with leases left to run out
//   2  the settings do not fit what the database has recorded
int serve(config const& settings);

} // namespace presenced::server
