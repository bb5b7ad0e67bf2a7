// Tells the database threads to end, and wakes those that wait.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace presenced::db {

// Thread-safe.
class stop_signal {
public:
    void raise() {
        {
            std::lock_guard const lock{mutex_};
            raised_ = true;
        }
        raised_changed_.notify_all();
    }

    bool is_raised() const {
        std::lock_guard const lock{mutex_};
        return raised_;
    }

    // Returns true as soon as it is raised, false after `time`.
    bool wait_for(std::chrono::milliseconds time) {
        std::unique_lock lock{mutex_};
        return raised_changed_.wait_until(lock, std::chrono::steady_clock::now() + time,
                                          [this] { return raised_; });
    }

private:
    mutable std::mutex mutex_;
    std::condition_variable raised_changed_;
    bool raised_ = false;
};

} // namespace presenced::db
