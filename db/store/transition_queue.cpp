#include "db/store/transition_queue.hpp"

#include <algorithm>

namespace presenced::db {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A thread is notified after the lock is given back: it would wake only to wait for the lock.

transition_queue::transition_queue(unsigned lanes)
    : pacing_{lanes}
    , lane_changed_(pacing_.lanes()) {}

bool transition_queue::push(acquire_request request) {
    auto const lane = pacing_.lane_of(request.agent);
    {
        std::lock_guard const lock{mutex_};
        if (!pacing_.add(std::move(request))) {
            return false;
        }
    }
    wake(lane);
    return true;
}

void transition_queue::push(release_request const& request) {
    {
        std::lock_guard const lock{mutex_};
        pacing_.add(request);
    }
    wake(pacing_.lane_of(request.agent));
}

std::optional<operation> transition_queue::abandon(lease_token const& token) {
    std::lock_guard const lock{mutex_};
    return pacing_.abandon(token);
}

// An idle lane comes back to its thread that often, to see whether its session lives.
constexpr std::chrono::seconds idle_limit{1};

// `next` fills the batch if it can, and returns when to ask again if it cannot.
template <class Next>
void transition_queue::wait_for_batch(std::condition_variable& changed, operations& batch,
                                      Next next) {
    auto const limit_of_wait = steady_clock::now() + idle_limit;
    std::unique_lock lock{mutex_};
    while (!stopping_) {
        time_point const due = next();
        if (!batch.empty() || steady_clock::now() >= limit_of_wait) {
            return;
        }
        changed.wait_until(lock, std::min(due, limit_of_wait));
    }
}

void transition_queue::take(unsigned lane, std::size_t limit, operations& batch) {
    wait_for_batch(lane_changed_[lane], batch, [&] {
        auto const busy = pacing_.busy_depth();
        pacing_.next(lane, limit, steady_clock::now(), batch);
        if (pacing_.busy_depth() != busy) {
            busy_changed_.notify_one(); // it met suspects
        }
        return pacing_.next_due(lane);
    });
}

void transition_queue::take_busy(std::size_t limit, operations& batch) {
    wait_for_batch(busy_changed_, batch, [&] {
        pacing_.next_busy(limit, steady_clock::now(), batch);
        return pacing_.next_busy_due();
    });
}

void transition_queue::give_back(operations& batch, operations& dropped) {
    if (batch.empty()) {
        return;
    }
    {
        std::lock_guard const lock{mutex_};
        pacing_.give_back(batch, dropped);
    }
    for (auto& lane : lane_changed_) {
        lane.notify_one();
    }
}

void transition_queue::defer(operations& batch, milliseconds pause, operations& dropped) {
    if (batch.empty()) {
        return;
    }
    {
        std::lock_guard const lock{mutex_};
        pacing_.defer(batch, steady_clock::now() + pause, dropped);
    }
    busy_changed_.notify_one();
}

void transition_queue::delay(operations& batch, milliseconds pause, operations& dropped) {
    if (batch.empty()) {
        return;
    }
    {
        std::lock_guard const lock{mutex_};
        pacing_.delay(batch, steady_clock::now() + pause, dropped);
    }
    for (auto& lane : lane_changed_) {
        lane.notify_one();
    }
}

bool transition_queue::suspect(operations& batch, milliseconds pause, operations& dropped) {
    if (batch.empty()) {
        return false;
    }
    bool news = false;
    {
        std::lock_guard const lock{mutex_};
        news = pacing_.suspect(batch, steady_clock::now(), pause, dropped);
    }
    busy_changed_.notify_one();
    return news;
}

void transition_queue::finish(operations const& batch) {
    if (batch.empty()) {
        return;
    }
    std::lock_guard const lock{mutex_};
    pacing_.finish(batch);
    if (pacing_.releases() == 0) {
        released_.notify_all();
    }
}

void transition_queue::stop() {
    {
        std::lock_guard const lock{mutex_};
        stopping_ = true;
    }
    for (auto& lane : lane_changed_) {
        lane.notify_all();
    }
    busy_changed_.notify_all();
}

std::size_t transition_queue::wait_for_releases(time_point deadline) {
    std::unique_lock lock{mutex_};
    released_.wait_until(lock, deadline, [this] { return pacing_.releases() == 0; });
    return pacing_.releases();
}

std::size_t transition_queue::depth(unsigned lane) const {
    std::lock_guard const lock{mutex_};
    return pacing_.depth(lane);
}

std::size_t transition_queue::busy_depth() const {
    std::lock_guard const lock{mutex_};
    return pacing_.busy_depth();
}

} // namespace presenced::db
