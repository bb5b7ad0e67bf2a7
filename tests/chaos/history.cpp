#include "tests/chaos/history.hpp"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include <fcntl.h>
#include <unistd.h>

namespace presenced::tests {

history::history(std::string const& path, steady::time_point start)
    : file_{::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)}
    , start_{start} {
    if (file_ < 0) {
        throw std::runtime_error{path + ": " + std::strerror(errno)};
    }
}

history::~history() {
    ::close(file_);
}

double history::seconds(steady::time_point at) const {
    auto const us = std::chrono::duration_cast<std::chrono::microseconds>(at - start_).count();
    return static_cast<double>(us) / 1e6;
}

void history::write(char const* what, double at, json fields) {
    fields["e"] = what;
    fields["t"] = std::round(at * 1e6) / 1e6;
    auto const line = fields.dump() + '\n';
    if (::write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
        // A history with a hole proves nothing.
        std::fprintf(stderr, "chaos: history: %s\n", std::strerror(errno));
        ::_exit(3);
    }
}

} // namespace presenced::tests
