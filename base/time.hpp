// Durations as settings, messages and tables show them. Pure functions, any thread.
#pragma once

#include <chrono>
#include <string>

namespace presenced::base {

// `250ms`, `15s`, `120s`, `10m`, `2h`, `90d`: exact, in a unit that reads well, and as a setting
// takes it.
std::string show_duration(std::chrono::milliseconds d);

// How long ago something was, for a person: `4.2s`, `3m 20s`, `5h 12m`, `9d 3h`. Cut, not rounded.
std::string show_age(std::chrono::milliseconds age);

} // namespace presenced::base
