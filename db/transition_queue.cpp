#include "db/transition_queue.hpp"

#include <algorithm>
#include <functional>
#include <string_view>

namespace presenced::db {

namespace {

// Acquires that may wait for an answer; beyond, clients are better served elsewhere or later.
constexpr std::size_t acquire_limit = 65'536;
// How long an agent whose calls took too long is kept away from the others after that.
constexpr std::chrono::minutes suspicion_time{2};

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
            forget_busy(op.agent);
        }
    }
    return op;
}

operations transition_queue::take_delayed(lane_queue& lane) {
    operations batch;
    auto const now = std::chrono::steady_clock::now();
    while (batch.empty() && !lane.delayed.empty() && lane.delayed.begin()->first <= now) {
        auto const due = lane.delayed.begin();
        if (!due->second.empty()) {
            depart(due->second, due->second.begin(), batch);
        }
        lane.delayed.erase(due);
    }
    return batch;
}

operations transition_queue::take(unsigned number, std::size_t limit) {
    std::unique_lock lock{mutex_};
    auto& lane = lanes_[number];
    for (;;) {
        if (stopping_) {
            return {};
        }
        operations batch;
        if (lane.delayed_next || lane.waiting.empty()) {
            batch = take_delayed(lane);
        }
        lane.delayed_next = batch.empty();
        while (lane.delayed_next && !lane.waiting.empty() && batch.size() < limit) {
            auto const first = lane.waiting.begin();
            if (suspicion_of(first->agent) != nullptr) {
                operations one;
                one.splice(one.begin(), lane.waiting, first);
                put_busy(std::move(one), std::chrono::steady_clock::now());
                busy_changed_.notify_one();
            } else {
                depart(lane.waiting, first, batch);
            }
        }
        if (!batch.empty()) {
            return batch;
        }
        if (lane.delayed.empty()) {
            lane.changed.wait(lock);
        } else {
            auto const due = lane.delayed.begin()->first;
            lane.changed.wait_until(lock, due);
        }
    }
}

transition_queue::suspicion const* transition_queue::suspicion_of(agent_id agent) const {
    auto const known = suspects_.find(agent);
    return known != suspects_.end() && known->second.ends > std::chrono::steady_clock::now()
               ? &known->second
               : nullptr;
}

// Where its agent waits already, both go when the first of them is due.
void transition_queue::put_busy(operations one, time_point due) {
    auto const agent = one.front().agent;
    if (auto const* const suspected = suspicion_of(agent)) {
        due = std::max(due, suspected->not_before);
    }
    auto const entry = busy_.try_emplace(agent, busy_agent{{}, time_point::max()}).first;
    set_due(agent, std::min(entry->second.due, due));
    ++busy_count_;
    settle(entry->second.waiting, std::move(one), false);
}

void transition_queue::set_due(agent_id agent, time_point due) {
    auto& entry = busy_.at(agent);
    due_.erase({entry.due, agent});
    entry.due = due;
    due_.emplace(due, agent);
}

void transition_queue::forget_busy(agent_id agent) {
    auto const entry = busy_.find(agent);
    due_.erase({entry->second.due, agent});
    busy_.erase(entry);
}

// Up to `limit` operations in all; what is left of an agent's goes behind the other agents.
void transition_queue::take_busy_of(agent_id agent, std::size_t limit, operations& batch) {
    auto& entry = busy_.at(agent);
    while (!entry.waiting.empty() && batch.size() < limit) {
        depart(entry.waiting, entry.waiting.begin(), batch);
        --busy_count_;
    }
    if (entry.waiting.empty()) {
        forget_busy(agent);
        return;
    }
    set_due(agent, std::chrono::steady_clock::now());
}

operations transition_queue::take_due(std::size_t limit) {
    operations batch;
    auto const now = std::chrono::steady_clock::now();
    std::vector<agent_id> others;
    std::optional<agent_id> suspected;
    std::size_t found = 0;
    for (auto it = due_.begin(); it != due_.end() && it->first <= now && found < limit; ++it) {
        if (suspicion_of(it->second) == nullptr) {
            others.push_back(it->second);
            found += busy_.at(it->second).waiting.size();
        } else if (!suspected) {
            suspected = it->second;
        }
    }
    if (suspected && (suspect_next_ || others.empty())) {
        others = {*suspected};
        suspect_next_ = false;
    } else {
        suspect_next_ = true;
    }
    for (auto const agent : others) {
        take_busy_of(agent, limit, batch);
    }
    return batch;
}

operations transition_queue::take_busy(std::size_t limit) {
    std::unique_lock lock{mutex_};
    while (!stopping_) {
        if (auto batch = take_due(limit); !batch.empty()) {
            return batch;
        }
        if (due_.empty()) {
            busy_changed_.wait(lock);
        } else {
            auto const due = due_.begin()->first; // by value: it may go while this waits
            busy_changed_.wait_until(lock, due);
        }
    }
    return {};
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
    while (!batch.empty()) {
        operations one;
        one.splice(one.begin(), batch, batch.begin());
        put_busy(std::move(one), due);
    }
    busy_changed_.notify_one();
    return dropped;
}

operations transition_queue::suspect(operations batch, std::chrono::milliseconds pause) {
    {
        std::lock_guard const lock{mutex_};
        auto const now = std::chrono::steady_clock::now();
        std::erase_if(suspects_, [now](auto const& s) { return s.second.ends <= now; });
        for (auto const& op : batch) {
            suspects_.insert_or_assign(op.agent, suspicion{now + suspicion_time, now + pause});
            // What came while the call was under way waits with it.
            if (busy_.contains(op.agent)) {
                set_due(op.agent, now + pause);
            }
        }
    }
    return defer(std::move(batch), pause);
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
        suspects_.erase(op.agent);
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
