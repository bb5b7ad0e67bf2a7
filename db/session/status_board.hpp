// How each database thread is doing, and what the judgement says: what health() tells, and the log
// lines of an outage.
#pragma once

#include "db/session/health.hpp"
#include "db/session/observer.hpp"

#include <mutex>
#include <optional>
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

    // The lane has a connection; earlier trouble with connecting is over. Trouble with a call is
    // over at succeeded() alone, and so a lane with such trouble must make a call, if only an empty
    // one.
    void connected(std::size_t lane);
    // A call succeeded, or failed for reasons that do not speak against the connection.
    void succeeded(std::size_t lane);
    // The lane cannot connect, or what it reached refuses its calls.
    void failed(std::size_t lane, std::string problem, bool connecting, bool reached);
    // The lane is connected to a database that does not take its statements.
    void refused(std::size_t lane, std::string problem);

    // A renewal committed, if only an empty one.
    void renewed();
    // The newest tick in the database is so old.
    void ticked(std::chrono::milliseconds age);
    // A call failed in a way that speaks of rights or names: judge soon.
    void suspect();
    bool is_judgement_wanted() const;
    // Whether the database lets this node do its work: an empty `unfit`, or why not. A lane that is
    // refused is explained by `unfit`; if that is empty, the lane's own words go to the log.
    void judged(std::string unfit, bool stale_after_changed);
    // The judgement could not be made: what it said last stays.
    void not_judged();
    void swept();

    // reachable, writable, problem and the times; queues are somebody else's.
    store_health health() const;

private:
    using time_point = std::chrono::steady_clock::time_point;
    enum class trouble : std::uint8_t { unknown, none, connecting, preparing, calling };
    struct lane_state {
        std::string name;
        bool beats;
        trouble why = trouble::unknown;
        bool reached = false;
        std::string problem;
        time_point since{};
    };

    void recover(lane_state& lane);
    // In the way of the lane's work, and not for a reason that the judgement has named or will.
    bool is_away(lane_state const& lane) const;
    void announce();
    void tell_gauge();

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
    bool suspected_ = false;
    time_point judged_{};
    bool away_ = false;
    bool ever_up_ = false;
    std::optional<bool> told_;
    time_point away_since_{};
};

} // namespace presenced::db
