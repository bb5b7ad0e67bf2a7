// Hands acquires and releases to the lanes, as batch_pacing says, and wakes the lanes for them.
#pragma once

#include "db/store/batch_pacing.hpp"

#include <condition_variable>
#include <mutex>
#include <vector>

namespace presenced::db {

// Thread-safe. For what the verbs do, see batch_pacing.
class transition_queue {
public:
    using time_point = std::chrono::steady_clock::time_point;

    explicit transition_queue(unsigned lanes);

    // False: too many acquires wait already.
    bool push(acquire_request request);
    void push(release_request const& request);
    std::optional<operation> abandon(lease_token const& token);

    // Waits for work of a lane, up to `limit` operations. Adds it to `batch`: none once stopped,
    // and none when there was none for a second.
    void take(unsigned lane, std::size_t limit, operations& batch);
    // The same of the busy lane.
    void take_busy(std::size_t limit, operations& batch);

    // Each of these adds to `dropped` the acquires that were taken back meanwhile and never done.
    void give_back(operations& batch, operations& dropped);
    void defer(operations& batch, std::chrono::milliseconds pause, operations& dropped);
    void delay(operations& batch, std::chrono::milliseconds pause, operations& dropped);
    bool suspect(operations& batch, std::chrono::milliseconds pause, operations& dropped);
    // Answered, or about to be.
    void finish(operations const& batch);

    // No more work is handed out.
    void stop();
    // Waits until no release is left; returns how many are.
    std::size_t wait_for_releases(time_point deadline);

    std::size_t depth(unsigned lane) const;
    std::size_t busy_depth() const;

private:
    template <class Next>
    void wait_for_batch(std::condition_variable& changed, operations& batch, Next next);
    void wake(unsigned lane) { lane_changed_[lane].notify_one(); }

    mutable std::mutex mutex_;
    batch_pacing pacing_;
    std::vector<std::condition_variable> lane_changed_;
    std::condition_variable busy_changed_;
    std::condition_variable released_;
    bool stopping_ = false;
};

} // namespace presenced::db
