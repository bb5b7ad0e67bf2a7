// Sets up the log: one line an entry on stderr, RFC 3339 UTC.
//
//   text  2026-01-31T12:00:00.123Z info listener listening address=127.0.0.1:8080
//   json  {"time":"2026-01-31T12:00:00.123Z","level":"info","message":"listener listening ..."}
//
// A message is `component event key=value key=value`, and goes to spdlog's default logger.
#pragma once

#include "server/config.hpp"

#include <string>
#include <string_view>

namespace presenced::server {

// Once, before there are threads.
void set_up_log(log_settings const& settings);

// A value as it stands behind `key=`: as it is when it is plain, else quoted as JSON, so that what
// a peer sent cannot pass for another key or another line.
std::string log_value(std::string_view text);

} // namespace presenced::server
