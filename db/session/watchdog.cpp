#include "db/session/watchdog.hpp"

#include "base/threads.hpp"
#include "db/session/thread.hpp"

#include <algorithm>

#include <sys/socket.h>

namespace presenced::db {

watchdog::watchdog()
    : thread_{base::start_thread("the database", [this] { run(); })} {}

watchdog::~watchdog() {
    {
        std::lock_guard const lock{mutex_};
        stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
}

watchdog::guard::guard(watchdog& dog, int socket, time_point deadline)
    : dog_{dog}
    , socket_{socket}
    , deadline_{deadline} {
    std::lock_guard const lock{dog_.mutex_};
    self_ = dog_.guards_.insert(dog_.guards_.end(), this);
    if (deadline < dog_.wakes_at_) {
        dog_.changed_.notify_one();
    }
}

watchdog::guard::~guard() {
    std::lock_guard const lock{dog_.mutex_};
    dog_.guards_.erase(self_);
}

bool watchdog::guard::has_fired() const {
    std::lock_guard const lock{dog_.mutex_};
    return fired_;
}

void watchdog::limit(time_point last) {
    {
        std::lock_guard const lock{mutex_};
        limit_ = last;
    }
    changed_.notify_one();
}

void watchdog::run() {
    std::unique_lock lock{mutex_};
    while (!stopping_) {
        auto const now = std::chrono::steady_clock::now();
        auto next = time_point::max();
        for (auto* g : guards_) {
            if (g->fired_) {
                continue;
            }
            auto const deadline = std::min(g->deadline_, limit_);
            if (deadline <= now) {
                g->fired_ = true;
                // Wakes the thread that waits in poll(); closing stays with the owner.
                ::shutdown(g->socket_, SHUT_RDWR);
            } else {
                next = std::min(next, deadline);
            }
        }
        wakes_at_ = next;
        if (next == time_point::max()) {
            changed_.wait(lock);
        } else {
            changed_.wait_until(lock, next);
        }
    }
}

} // namespace presenced::db
