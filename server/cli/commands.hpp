// The command line of presenced: which command, with which options.
#pragma once

namespace presenced::server {

// Returns the exit code: 0, 1 failure, 2 usage or a bad setting.
int run_command_line(int argc, char const* const* argv);

} // namespace presenced::server
