// The sweep thread: puts right, over all nodes, what nobody else did.
#pragma once

#include "base/line_limit.hpp"
#include "db/session/connection.hpp"
#include "db/store/postgres_store.hpp"

#include <thread>

namespace presenced::db {

class sweeper {
public:
    sweeper(session_context const& context, postgres_options const& options,
            std::size_t board_number, stop_signal& stop);
    void join() { thread_.join(); }

private:
    static constexpr int agents_a_round = 500;

    bool step();
    std::chrono::milliseconds sweep(int limit);
    std::chrono::milliseconds after_failure(call_failure const& e);

    postgres_options const& options_;
    status_board& board_;
    observer& watcher_;
    stop_signal& stop_;
    connection link_;
    int limit_ = agents_a_round;
    base::line_limit repairs_{100}; // a second; routing_transitions has all of them
    std::thread thread_;
};

} // namespace presenced::db
