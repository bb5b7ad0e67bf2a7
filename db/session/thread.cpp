#include "db/session/thread.hpp"

#include <spdlog/spdlog.h>

#include <stdexcept>
#include <string>
#include <system_error>

namespace presenced::db {

std::thread start_thread(std::function<void()> body) {
    try {
        return std::thread{std::move(body)};
    } catch (std::system_error const& e) {
        throw std::runtime_error{
            std::string{"cannot start a thread for the database ("} + e.code().message() +
            "): raise the limit on tasks: TasksMax= in the unit, --pids-limit of the container, "
            "or ulimit -u"};
    }
}

void exception_log::write(std::exception const& e) noexcept {
    try {
        if (auto const more = lines_.admit()) {
            spdlog::error("database thread failed, going on lane={} why=\"{}\"{}", lane_, e.what(),
                          *more);
        }
    } catch (std::exception const&) { // not even memory for the line
    }
}

} // namespace presenced::db
