// Ends calls to the database that overrun: a hung proxy or a stopped backend never answers, and
// no timeout of the server's reaches us from there.
#pragma once

#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>

namespace presenced::db {

// Thread-safe.
class watchdog {
public:
    using time_point = std::chrono::steady_clock::time_point;

    watchdog();
    ~watchdog();

    // While one lives, a call is under way on `socket`; past the deadline it is shut down, and the
    // call fails. `socket` is the caller's own duplicate: libpq may close its descriptor at any
    // time, and the number may then be somebody else's.
    class guard {
    public:
        guard(watchdog& dog, int socket, time_point deadline);
        ~guard();
        guard(guard const&) = delete;
        guard& operator=(guard const&) = delete;

        // The deadline passed and the socket is shut.
        bool has_fired() const;

    private:
        friend class watchdog;
        watchdog& dog_;
        int socket_;
        time_point deadline_;
        bool fired_ = false;
        std::list<guard*>::iterator self_;
    };

    // From now on no call runs past this point, whatever its own deadline.
    void limit(time_point last);

private:
    void run();

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::list<guard*> guards_;
    time_point limit_ = time_point::max();
    time_point wakes_at_ = time_point::max();
    bool stopping_ = false;
    std::thread thread_;
};

} // namespace presenced::db
