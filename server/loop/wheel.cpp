#include "server/loop/wheel.hpp"

#include <spdlog/spdlog.h>

#include <exception>
#include <limits>
#include <utility>

namespace presenced::server {

namespace {

// More than any regular interval at the default granularity; what lies further waits here and is
// put back when its slot comes around.
constexpr std::size_t slot_count = 1024;

// A turn that comes this many granularities after the last means that the process did not run
// (uptime.hpp). So with nothing to do it turns, too, and often enough that its sleep counts for
// little in that.
constexpr int stall = 40;
constexpr std::size_t longest_sleep = stall / 8;

constexpr auto not_set = std::numeric_limits<std::size_t>::max();

} // namespace

void wheel::entry::unlink() {
    if (link_ != nullptr) {
        *link_ = next_;
        if (next_ != nullptr) {
            next_->link_ = link_;
        }
        link_ = nullptr;
        next_ = nullptr;
    }
}

wheel::wheel(asio::io_context& context, clock::duration granularity)
    : timer_{context.get_executor()}
    , granularity_{granularity}
    , start_{clock::now()}
    , uptime_{start_, stall * granularity}
    , slots_(slot_count, nullptr) {}

void wheel::start() {
    arm();
}

void wheel::stop() {
    stopped_ = true;
    awaited_ = 0;
    timer_.cancel();
    for (auto& head : slots_) {
        while (head != nullptr) {
            head->unlink();
        }
    }
}

std::size_t wheel::slot_of(clock::time_point t) const {
    // Rounded up: a deadline is never met early.
    auto const since = t - start_;
    return since <= clock::duration::zero()
               ? 0
               : static_cast<std::size_t>((since + granularity_ - clock::duration{1}) /
                                          granularity_);
}

void wheel::schedule(entry& e, clock::time_point deadline) {
    e.unlink();
    e.deadline_ = deadline;
    auto slot = slot_of(deadline);
    if (slot < position_) {
        slot = position_;
    } else if (slot >= position_ + slot_count) {
        slot = position_ + slot_count - 1;
    }
    auto& head = slots_[slot % slot_count];
    e.next_ = head;
    e.link_ = &head;
    if (head != nullptr) {
        head->link_ = &e.next_;
    }
    head = &e;
    if (awaited_ == not_set) {
        arm();
    } else if (slot < awaited_) {
        wait_for(slot);
    }
}

void wheel::arm() {
    auto slot = position_;
    while (slot < position_ + longest_sleep && slots_[slot % slot_count] == nullptr) {
        ++slot;
    }
    wait_for(slot);
}

// Instead of what it waited for until now.
void wheel::wait_for(std::size_t slot) {
    awaited_ = not_set; // should this fail for want of memory, whoever schedules next sets it
    timer_.expires_at(start_ + granularity_ * static_cast<clock::rep>(slot));
    timer_.async_wait([this](error_code ec) {
        if (!ec) {
            turn();
        }
    });
    awaited_ = slot;
}

void wheel::turn() {
    awaited_ = 0; // what fires and schedules is seen by arm()
    auto const now = this->now().now;
    auto const until = static_cast<std::size_t>((now - start_) / granularity_);
    while (position_ <= until) {
        // Taken off the wheel first: what fires may schedule itself into this slot again.
        entry* due = std::exchange(slots_[position_ % slot_count], nullptr);
        ++position_;
        if (due != nullptr) {
            due->link_ = &due;
        }
        while (due != nullptr) {
            entry& e = *due;
            e.unlink();
            if (stopped_) {
                continue;
            }
            if (e.deadline_ > now) {
                schedule(e, e.deadline_);
            } else {
                // What fails here, for want of memory say, must not stop everybody's time.
                try {
                    e.on_deadline(now);
                } catch (std::exception const& failure) {
                    spdlog::error("shard deadline failed, going on why=\"{}\"", failure.what());
                }
            }
        }
    }
    if (!stopped_) {
        arm();
    }
}

} // namespace presenced::server
