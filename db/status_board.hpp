// How each database thread is doing: what health() tells, and the two log lines of an outage.
#pragma once

#include "db/observer.hpp"
#include "db/store.hpp"

#include <mutex>
#include <string>
#include <vector>

namespace presenced::db {

// Thread-safe.
class status_board {
public:
    explicit status_board(observer& watcher)
        : watcher_{watcher} {}

    // Before any thread starts; the number names the lane from then on. `beats`: the lane writes
    // all the time, so that it is the one that knows whether the database can be written to.
    std::size_t add(std::string lane, bool beats);

    // The lane has a connection; earlier trouble with connecting is over.
    void connected(std::size_t lane);
    // A call succeeded, or failed for reasons that do not speak against the connection.
    void succeeded(std::size_t lane);
    // The lane cannot connect, or what it reached refuses its calls.
    void failed(std::size_t lane, std::string problem, bool connecting, bool reached);

    // A renewal committed, if only an empty one.
    void renewed();
    // The newest tick in the database is so old.
    void ticked(std::chrono::milliseconds age);
    // Whether what the database has recorded is for this node: an empty `unfit`, or why not.
    void looked(std::string unfit, bool stale_after_changed);
    void swept();

    // reachable, writable, problem and the times; queues are somebody else's.
    store_health health() const;

private:
    using time_point = std::chrono::steady_clock::time_point;
    enum class trouble : std::uint8_t { unknown, none, connecting, calling };
    struct lane_state {
        std::string name;
        bool beats;
        trouble why = trouble::unknown;
        bool reached = false;
        std::string problem;
    };

    void recover(lane_state& lane);
    void announce();

    observer& watcher_;
    mutable std::mutex mutex_;
    std::vector<lane_state> lanes_;
    time_point const started_ = std::chrono::steady_clock::now();
    time_point written_ = started_; // the database was last known to be writable
    time_point renewed_{};
    time_point ticked_{};
    std::string unfit_;
    bool stale_after_changed_ = false;
    time_point swept_{};
    bool away_ = false;
    bool ever_up_ = false;
    time_point away_since_{};
};

} // namespace presenced::db
