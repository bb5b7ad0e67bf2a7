// Sets up the log: one line an entry on stderr, RFC 3339 UTC.
//
//   text  2026-01-31T12:00:00.123Z info listener listening address=127.0.0.1:8080
//   json  {"time":"2026-01-31T12:00:00.123Z","level":"info","message":"listener listening ..."}
//
// A message is `component event key=value key=value`, and goes to spdlog's default logger. Nobody
// waits for whoever reads stderr: lines queue up for a thread that writes them, in order, and when
// the queue is full the oldest are dropped and counted.
#pragma once

#include "base/line_limit.hpp"
#include "server/node/config.hpp"

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace presenced::server {

// Once, before there are threads.
void set_up_log(log_settings const& settings);

// Waits until what was logged so far is written; false when it is not within `limit`, because
// nobody reads. For the end of the process: afterwards it may exit at any moment.
bool flush_log(std::chrono::milliseconds limit);

// Lines that were dropped since the start. Thread-safe.
std::uint64_t dropped_log_lines();

// Here, too, where most of its lines are written.
using base::line_limit;

// A value as it stands behind `key=`: as it is when it is plain, else quoted as JSON, so that what
// a peer sent cannot pass for another key or another line.
std::string log_value(std::string_view text);

} // namespace presenced::server
