#include "db/session/thread.hpp"

#include <spdlog/spdlog.h>

namespace presenced::db {

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
