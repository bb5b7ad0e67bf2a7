// Who listens to which agent's stream on this shard. A subscription is attached before its row is
// asked for, so that an agent is never routable without somebody at its stream (P7).
// Not thread-safe: one a shard, on its thread.
#pragma once

#include "server/cable/subscription.hpp"

#include <boost/intrusive/set.hpp>

#include <cassert>

namespace presenced::server {

class hub {
public:
    void attach(subscription& s) noexcept {
        assert(!s.in_hub.is_linked());
        all_.insert(s);
    }

    // Harmless when it is not attached.
    void detach(subscription& s) noexcept { s.in_hub.unlink(); }

    bool has_listener(presence::agent_id agent) const { return all_.find(agent) != all_.end(); }
    bool empty() const { return all_.empty(); }

private:
    struct agent_of {
        using type = presence::agent_id;
        type operator()(subscription const& s) const { return s.agent; }
    };

    // The links are in the subscriptions: a map of agents would allocate for every session.
    boost::intrusive::multiset<subscription,
                               boost::intrusive::member_hook<
                                   subscription, subscription::stream_hook, &subscription::in_hub>,
                               boost::intrusive::key_of_value<agent_of>,
                               boost::intrusive::constant_time_size<false>>
        all_;
};

} // namespace presenced::server
