#include "base/threads.hpp"

#include <stdexcept>

namespace presenced::base {

std::string explain_thread_error(std::system_error const& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) {
        return e.what();
    }
    return "the limit on threads is reached; raise TasksMax= (systemd), --pids-limit (Docker) or "
           "ulimit -u (RLIMIT_NPROC), or lower PRESENCED_THREADS";
}

void throw_thread_error(std::string_view what, std::system_error const& e) {
    throw std::runtime_error{"cannot start a thread for " + std::string{what} + ": " +
                             explain_thread_error(e)};
}

} // namespace presenced::base
