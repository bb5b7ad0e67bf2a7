#include "db/transition_queue.hpp"

#include <algorithm>
#include <functional>
#include <string_view>

namespace presenced::db {

namespace {

// Acquires that may wait for an answer; beyond, clients are better served elsewhere or later.
constexpr std::size_t acquire_limit = 65'536;

std::size_t hash(lease_token const& token) {
    return std::hash<std::string_view>{}(token.view());
}

} // namespace

transition_queue::transition_queue(unsigned lanes)
    : lanes_(std::max(lanes, 1U))
    , acquires_(0, &hash) {}

transition_queue::lane_queue& transition_queue::lane_of(agent_id agent) {
    return lanes_[static_cast<std::uint64_t>(agent) % lanes_.size()];
}

// From here on the lock is held by the caller, in all private members.

void transition_queue::settle(operations& home, operations batch, bool in_front) {
    for (auto it = batch.begin(); it != batch.end(); ++it) {
        if (it->what == operation::kind::acquire) {
            acquires_.insert_or_assign(it->token, whereabouts{&home, it});
        }
    }
    home.splice(in_front ? home.begin() : home.end(), batch); // iterators stay good
}

void transition_queue::depart(operations& from, operations::iterator it, operations& batch) {
    if (it->what == operation::kind::acquire) {
        acquires_.find(it->token)->second.home = nullptr;
    }
    batch.splice(batch.end(), from, it);
}

// What may have been done has to be undone, and is not dropped until it is.
void transition_queue::convert(operation& op) {
    acquires_.erase(op.token);
    op.what = operation::kind::release;
    op.reason = release_reason::disconnected;
    op.abandoned = true;
    ++releases_;
}

operations transition_queue::without_abandoned(operations& batch) {
    operations dropped;
    for (auto it = batch.begin(); it != batch.end();) {
        auto const here = it++;
        if (here->what != operation::kind::acquire) {
            continue;
        }
        if (auto const known = acquires_.find(here->token); !known->second.abandoned) {
            continue;
        }
        if (here->maybe_done) {
            convert(*here);
        } else {
            acquires_.erase(here->token);
            dropped.splice(dropped.end(), batch, here);
        }
    }
    return dropped;
}

bool transition_queue::push(acquire_request request) {
    std::lock_guard const lock{mutex_};
    if (acquires_.size() >= acquire_limit) {
        return false;
    }
    operations one;
    one.push_back({.what = operation::kind::acquire,
                   .agent = request.agent,
                   .owner = request.owner,
                   .token = request.token,
                   .session_id = std::move(request.session_id),
                   .box = request.box,
                   .key = request.key});
    auto& lane = lane_of(request.agent);
    settle(lane.waiting, std::move(one), false);
    lane.changed.notify_one();
    return true;
}

void transition_queue::push(release_request request) {
    std::lock_guard const lock{mutex_};
    operations one;
    one.push_back({.what = operation::kind::release,
                   .reason = request.reason,
                   .agent = request.agent,
                   .token = request.token,
                   .session_id = {},
                   .box = request.box,
                   .key = request.key});
    ++releases_;
    auto& lane = lane_of(request.agent);
    settle(lane.waiting, std::move(one), false);
    lane.changed.notify_one();
}

std::optional<operation> transition_queue::abandon(lease_token const& token) {
    std::lock_guard const lock{mutex_};
    auto const known = acquires_.find(token);
    if (known == acquires_.end()) {
        return std::nullopt; // its answer is on its way
    }
    auto const [home, it, was_abandoned] = known->second;
    if (home == nullptr) {
        known->second.abandoned = true;
        return std::nullopt;
    }
    if (it->maybe_done) {
        convert(*it);
        return std::nullopt;
    }
    operation op = std::move(*it);
    home->erase(it);
    acquires_.erase(known);
    if (auto const b = busy_.find(op.agent); b != busy_.end() && &b->second.waiting == home) {
        --busy_count_;
        if (home->empty()) {
            busy_.erase(b);
        }
    }
    return op;
}

operations transition_queue::take(unsigned number, std::size_t limit) {
    std::unique_lock lock{mutex_};
    auto& lane = lanes_[number];
    for (;;) {
        if (stopping_) {
            return {};
        }
        auto const now = std::chrono::steady_clock::now();
        while (!lane.delayed.empty() && lane.delayed.begin()->first <= now) {
            auto const due = lane.delayed.begin();
            settle(lane.waiting, std::move(due->second), false);
            lane.delayed.erase(due);
        }
        if (!lane.waiting.empty()) {
            break;
        }
        if (lane.delayed.empty()) {
            lane.changed.wait(lock);
        } else {
            lane.changed.wait_until(lock, lane.delayed.begin()->first);
        }
    }
    operations batch;
    while (!lane.waiting.empty() && batch.size() < limit) {
        depart(lane.waiting, lane.waiting.begin(), batch);
    }
    return batch;
}

operations transition_queue::take_busy(std::size_t limit) {
    std::unique_lock lock{mutex_};
    operations batch;
    while (!stopping_) {
        auto const now = std::chrono::steady_clock::now();
        auto next = time_point::max();
        for (auto it = busy_.begin(); it != busy_.end() && batch.size() < limit;) {
            auto const here = it++;
            if (here->second.due > now) {
                next = std::min(next, here->second.due);
                continue;
            }
            busy_count_ -= here->second.waiting.size();
            while (!here->second.waiting.empty()) {
                depart(here->second.waiting, here->second.waiting.begin(), batch);
            }
            busy_.erase(here);
        }
        if (!batch.empty()) {
            break;
        }
        if (next == time_point::max()) {
            busy_changed_.wait(lock);
        } else {
            busy_changed_.wait_until(lock, next);
        }
    }
    return batch;
}

operations transition_queue::give_back(operations batch) {
    std::lock_guard const lock{mutex_};
    auto dropped = without_abandoned(batch);
    // One lane's batch, or what is left of several agents'; each goes back where it belongs.
    while (!batch.empty()) {
        operations one;
        one.splice(one.begin(), batch, std::prev(batch.end()));
        auto& home = lane_of(one.front().agent).waiting;
        settle(home, std::move(one), true);
    }
    for (auto& lane : lanes_) {
        lane.changed.notify_one();
    }
    return dropped;
}

operations transition_queue::defer(operations batch, std::chrono::milliseconds pause) {
    std::lock_guard const lock{mutex_};
    auto dropped = without_abandoned(batch);
    auto const due = std::chrono::steady_clock::now() + pause;
    busy_count_ += batch.size();
    while (!batch.empty()) {
        operations one;
        one.splice(one.begin(), batch, batch.begin());
        auto& agent = busy_.try_emplace(one.front().agent, busy_agent{{}, due}).first->second;
        agent.due = std::min(agent.due, due);
        settle(agent.waiting, std::move(one), false);
    }
    busy_changed_.notify_one();
    return dropped;
}

operations transition_queue::delay(operations batch, std::chrono::milliseconds pause) {
    std::lock_guard const lock{mutex_};
    auto dropped = without_abandoned(batch);
    auto const due = std::chrono::steady_clock::now() + pause;
    while (!batch.empty()) {
        operations one;
        one.splice(one.begin(), batch, batch.begin());
        auto& lane = lane_of(one.front().agent);
        auto& home = lane.delayed.emplace(due, operations{})->second;
        settle(home, std::move(one), false);
        lane.changed.notify_one();
    }
    return dropped;
}

void transition_queue::finish(operations const& batch) {
    std::lock_guard const lock{mutex_};
    for (auto const& op : batch) {
        if (op.what == operation::kind::acquire) {
            acquires_.erase(op.token);
        } else {
            --releases_;
        }
    }
    if (releases_ == 0) {
        released_.notify_all();
    }
}

void transition_queue::stop() {
    std::lock_guard const lock{mutex_};
    stopping_ = true;
    for (auto& lane : lanes_) {
        lane.changed.notify_all();
    }
    busy_changed_.notify_all();
}

std::size_t transition_queue::wait_for_releases(time_point deadline) {
    std::unique_lock lock{mutex_};
    released_.wait_until(lock, deadline, [this] { return releases_ == 0; });
    return releases_;
}

std::size_t transition_queue::depth(unsigned lane) const {
    std::lock_guard const lock{mutex_};
    return lanes_[lane].waiting.size() + lanes_[lane].delayed.size();
}

std::size_t transition_queue::busy_depth() const {
    std::lock_guard const lock{mutex_};
    return busy_count_;
}

} // namespace presenced::db
