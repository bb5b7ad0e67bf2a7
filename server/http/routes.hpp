// What this server answers on HTTP.
#pragma once

#include "server/http/router.hpp"
#include "server/node/config.hpp"

namespace presenced::server {

// /healthz, /readyz, /metrics, and the upgrade to the cable at its path.
router make_routes(config const& settings);

} // namespace presenced::server
