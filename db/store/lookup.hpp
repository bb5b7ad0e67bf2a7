// The lookup thread: what is this access token worth, and what of that does not hold any more.
#pragma once

#include "db/session/connection.hpp"
#include "db/store/answers.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace presenced::db {

// Thread-safe.
class lookup {
public:
    lookup(session_context const& context, std::size_t board_number, stop_signal& stop);

    // False: too many wait already.
    bool push(authenticate_request request);
    void push(check_request request);

    // After the stop signal was raised.
    void wake();
    void join() { thread_.join(); }

    std::size_t depth() const;

private:
    bool step();
    void authenticate(std::vector<authenticate_request> const& batch);
    void check(check_request const& request);

    stop_signal& stop_;
    observer& watcher_;
    connection link_;
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<authenticate_request> waiting_;
    std::deque<check_request> checks_;
    bool stopping_ = false;
    std::thread thread_;
};

} // namespace presenced::db
