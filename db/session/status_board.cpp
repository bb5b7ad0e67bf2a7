#include "db/session/status_board.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace presenced::db {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

// The lane that judges may be refused itself.
constexpr milliseconds longest_judgement{3'000};

} // namespace

std::size_t status_board::add(std::string lane, bool beats) {
    std::lock_guard const lock{mutex_};
    lanes_.push_back({std::move(lane), beats, trouble::unknown, false, {}, {}});
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
    l.since = steady_clock::now();
    suspected_ = suspected_ || !connecting;
    announce();
}

void status_board::refused(std::size_t lane, std::string problem) {
    std::lock_guard const lock{mutex_};
    auto& l = lanes_[lane];
    l.since = l.why == trouble::preparing ? l.since : steady_clock::now();
    l.why = trouble::preparing;
    l.reached = true;
    l.problem = std::move(problem);
    suspected_ = true;
    announce();
}

bool status_board::is_away(lane_state const& lane) const {
    if (lane.why == trouble::connecting) {
        return true;
    }
    bool const is_refused = lane.why == trouble::preparing || lane.why == trouble::calling;
    bool const is_judged =
        judged_ >= lane.since || steady_clock::now() - lane.since > longest_judgement;
    return is_refused && unfit_.empty() && is_judged;
}

// One line when the database goes away and one when it is back, however many threads notice.
void status_board::announce() {
    auto const troubled =
        std::find_if(lanes_.begin(), lanes_.end(), [this](auto const& l) { return is_away(l); });
    bool const is_clear = std::all_of(lanes_.begin(), lanes_.end(),
                                      [](auto const& l) { return l.why == trouble::none; });
    if (troubled != lanes_.end() && !away_) {
        away_ = true;
        away_since_ = steady_clock::now();
        spdlog::warn("database away lane={} reason=\"{}\"", troubled->name, troubled->problem);
    } else if (is_clear && judged_ != time_point{} && unfit_.empty() && (!ever_up_ || away_)) {
        auto const since = away_ ? away_since_ : started_;
        auto const took = duration_cast<milliseconds>(steady_clock::now() - since);
        spdlog::info("database {} after_ms={}", ever_up_ ? "back" : "up", took.count());
        away_ = false;
        ever_up_ = true;
    }
    tell_gauge();
}

void status_board::tell_gauge() {
    bool const up = ever_up_ && !away_ && unfit_.empty();
    bool const is_known = up || away_ || !unfit_.empty();
    if (told_ ? *told_ != up : is_known) {
        watcher_.database_up(up);
        told_ = up;
    }
}

void status_board::renewed() {
    std::lock_guard const lock{mutex_};
    renewed_ = steady_clock::now();
}

void status_board::ticked(milliseconds age) {
    std::lock_guard const lock{mutex_};
    ticked_ = steady_clock::now() - std::max(age, milliseconds{0});
}

void status_board::suspect() {
    std::lock_guard const lock{mutex_};
    suspected_ = true;
}

bool status_board::is_judgement_wanted() const {
    std::lock_guard const lock{mutex_};
    return suspected_;
}

void status_board::judged(std::string unfit, bool stale_after_changed) {
    std::lock_guard const lock{mutex_};
    judged_ = steady_clock::now();
    suspected_ = false;
    if (unfit.empty() && !unfit_.empty()) {
        // What a lane was refused for may be over: its next call tells.
        for (auto& l : lanes_) {
            l.since = std::max(l.since, judged_ + milliseconds{1});
        }
    }
    if (unfit != unfit_) {
        if (unfit.empty()) {
            spdlog::info("database fits again");
        } else {
            spdlog::error("database does not fit reason=\"{}\"", unfit);
        }
    }
    unfit_ = std::move(unfit);
    stale_after_changed_ = stale_after_changed;
    announce();
}

void status_board::not_judged() {
    std::lock_guard const lock{mutex_};
    judged_ = steady_clock::now();
    suspected_ = false;
    announce();
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
    for (auto const& l : lanes_) {
        if (h.unfit.empty() && l.reached && l.why != trouble::connecting && is_away(l)) {
            h.unfit = l.problem; // it answers, and does not let this lane do its work
        }
    }
    if (!unfit_.empty()) {
        h.problem = unfit_; // it names the cure
    }
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
