#include "db/status_board.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace presenced::db {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::size_t status_board::add(std::string lane, bool beats) {
    std::lock_guard const lock{mutex_};
    lanes_.push_back({std::move(lane), beats, trouble::unknown, false, {}});
    return lanes_.size() - 1;
}

void status_board::recover(lane_state& lane) {
    lane.why = trouble::none;
    lane.reached = true;
    lane.problem.clear();
    announce();
}

void status_board::connected(std::size_t lane) {
    std::lock_guard const lock{mutex_};
    auto& l = lanes_[lane];
    if (l.why != trouble::calling && l.why != trouble::none) {
        recover(l);
    }
}

void status_board::succeeded(std::size_t lane) {
    std::lock_guard const lock{mutex_};
    auto& l = lanes_[lane];
    if (l.beats) {
        written_ = steady_clock::now();
    }
    if (l.why != trouble::none) {
        recover(l);
    }
}

void status_board::failed(std::size_t lane, std::string problem, bool connecting, bool reached) {
    std::lock_guard const lock{mutex_};
    auto& l = lanes_[lane];
    l.why = connecting ? trouble::connecting : trouble::calling;
    l.reached = reached;
    l.problem = std::move(problem);
    announce();
}

// One line when the database goes away and one when it is back, however many threads notice.
void status_board::announce() {
    auto const troubled = std::find_if(lanes_.begin(), lanes_.end(), [](auto const& l) {
        return l.why == trouble::connecting || l.why == trouble::calling;
    });
    bool const away = troubled != lanes_.end();
    if (away && !away_) {
        away_ = true;
        away_since_ = steady_clock::now();
        spdlog::warn("database away lane={} reason=\"{}\"", troubled->name, troubled->problem);
        watcher_.database_up(false);
        return;
    }
    bool const up = std::all_of(lanes_.begin(), lanes_.end(),
                                [](auto const& l) { return l.why == trouble::none; });
    if (!up || (ever_up_ && !away_)) {
        return;
    }
    auto const since = away_ ? away_since_ : started_;
    auto const took = duration_cast<milliseconds>(steady_clock::now() - since);
    spdlog::info("database {} after_ms={}", ever_up_ ? "back" : "up", took.count());
    away_ = false;
    ever_up_ = true;
    watcher_.database_up(true);
}

void status_board::renewed() {
    std::lock_guard const lock{mutex_};
    renewed_ = steady_clock::now();
}

void status_board::ticked(milliseconds age) {
    std::lock_guard const lock{mutex_};
    ticked_ = steady_clock::now() - std::max(age, milliseconds{0});
}

void status_board::looked(std::string unfit, bool stale_after_changed) {
    std::lock_guard const lock{mutex_};
    if (unfit != unfit_) {
        if (unfit.empty()) {
            spdlog::info("database fits again");
        } else {
            spdlog::error("database does not fit reason=\"{}\"", unfit);
        }
    }
    unfit_ = std::move(unfit);
    stale_after_changed_ = stale_after_changed;
}

void status_board::swept() {
    std::lock_guard const lock{mutex_};
    swept_ = steady_clock::now();
}

store_health status_board::health() const {
    std::lock_guard const lock{mutex_};
    store_health h;
    auto const now = steady_clock::now();
    auto const since = [now](time_point t) {
        return duration_cast<milliseconds>(now - t);
    };
    h.reachable = true;
    h.writable = false;
    for (auto const& l : lanes_) {
        if (l.why == trouble::unknown) {
            h.reachable = false;
        } else if (l.why != trouble::none) {
            h.reachable = h.reachable && l.reached;
            if (h.problem.empty()) {
                h.problem = l.problem;
            }
        } else if (l.beats) {
            h.writable = renewed_ != time_point{};
        }
    }
    if (!h.reachable && h.problem.empty()) {
        h.problem = "not connected to the database yet";
    }
    if (!h.writable) {
        h.unreachable_for = since(written_);
    }
    h.unfit = unfit_;
    h.stale_after_changed = stale_after_changed_;
    if (ticked_ != time_point{}) {
        h.since_tick = since(ticked_);
    }
    if (swept_ != time_point{}) {
        h.since_sweep = since(swept_);
    }
    return h;
}

} // namespace presenced::db
