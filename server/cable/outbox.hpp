// What waits to be written to one client, bounded in frames and bytes.
// Frames are shared: a message for many clients is encoded once.
// Not thread-safe: its connection's shard only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace presenced::server {

using frame = std::shared_ptr<std::string const>;

class outbox {
public:
    // A client that lets this much pile up does not read: its connection ends (too_slow).
    static constexpr std::size_t max_frames = 1024;
    static constexpr std::size_t max_bytes = 512 * 1024;

    // From here on the client gets no further before it has read something.
    static constexpr std::size_t crowd_frames = 256;
    static constexpr std::size_t crowd_bytes = 32 * 1024;

    bool is_crowded() const { return size() >= crowd_frames || bytes_ >= crowd_bytes; }

    // False when it does not fit any more; nothing is queued then.
    bool push(frame f) {
        if (size() >= max_frames || bytes_ + f->size() > max_bytes) {
            return false;
        }
        push_last(std::move(f));
        return true;
    }

    // Past the bounds: for the one frame that says goodbye.
    void push_last(frame f) {
        bytes_ += static_cast<std::uint32_t>(f->size());
        frames_.push_back(std::move(f));
    }

    bool empty() const { return size() == 0; }
    std::size_t size() const { return frames_.size() - first_; }
    frame const& front() const { return frames_[first_]; }

    void pop() {
        bytes_ -= static_cast<std::uint32_t>(frames_[first_]->size());
        frames_[first_].reset();
        if (++first_ == frames_.size()) {
            // An idle connection keeps no memory for frames.
            frames_ = {};
            first_ = 0;
        } else if (first_ >= 64 && first_ * 2 >= frames_.size()) {
            frames_.erase(frames_.begin(), frames_.begin() + static_cast<std::ptrdiff_t>(first_));
            first_ = 0;
        }
    }

private:
    std::vector<frame> frames_;
    // Far below 2^32 by the bounds, and each connection has an outbox.
    std::uint32_t first_ = 0;
    std::uint32_t bytes_ = 0;
};

} // namespace presenced::server
