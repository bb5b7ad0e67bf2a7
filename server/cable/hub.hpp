// Who listens to which agent's stream on this shard. A subscription is attached before its row is
// asked for, so that an agent is never routable without somebody at its stream (P7).
// Not thread-safe: one a shard, on its thread.
#pragma once

#include "server/cable/subscription.hpp"

#include <cassert>
#include <cstddef>
#include <unordered_map>

namespace presenced::server {

class hub {
public:
    void attach(subscription& s) {
        assert(s.stream_link == nullptr);
        auto& head = streams_[s.agent];
        s.stream_next = head;
        s.stream_link = &head;
        if (head != nullptr) {
            head->stream_link = &s.stream_next;
        }
        head = &s;
    }

    // Harmless when it is not attached.
    void detach(subscription& s) {
        if (s.stream_link == nullptr) {
            return;
        }
        *s.stream_link = s.stream_next;
        if (s.stream_next != nullptr) {
            s.stream_next->stream_link = s.stream_link;
        }
        s.stream_link = nullptr;
        s.stream_next = nullptr;
        if (auto const it = streams_.find(s.agent); it != streams_.end() && it->second == nullptr) {
            streams_.erase(it);
        }
    }

    bool has_listener(presence::agent_id agent) const { return streams_.contains(agent); }
    std::size_t streams() const { return streams_.size(); }

private:
    // References into an unordered_map stay valid when it grows.
    std::unordered_map<presence::agent_id, subscription*> streams_;
};

} // namespace presenced::server
