#include "server/cli/commands.hpp"

#include <cerrno>

#include <fcntl.h>

namespace {

// Whoever starts a program may leave 0, 1 or 2 closed. The next socket would get that number, and
// with it what is meant for stderr: log lines in a client's connection.
void open_standard_descriptors() {
    for (int fd = 0; fd <= 2; ++fd) {
        if (fcntl(fd, F_GETFD) == -1 && errno == EBADF) {
            // The lowest free number is this one. Nobody could be told if it fails.
            static_cast<void>(open("/dev/null", O_RDWR));
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    open_standard_descriptors();
    return presenced::server::run_command_line(argc, argv);
}
