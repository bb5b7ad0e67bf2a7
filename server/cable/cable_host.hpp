// What a cable connection needs of the shard that it lives on.
#pragma once

#include "server/cable/leases.hpp"
#include "server/cable/outbox.hpp"
#include "server/loop/wheel.hpp"
#include "server/node/node.hpp"

#include <random>

namespace presenced::server {

class cable_connection;

class cable_host {
public:
    virtual node& shared() = 0;
    virtual wheel& timers() = 0;
    virtual leases& lease_table() = 0;
    virtual std::minstd_rand& random() = 0;
    // For what a connection does again and again: the first moment from `t` on that it may share
    // with others, so that a shard with few connections sleeps in between. A twelfth of the ping
    // interval later at most, and no more than a quarter of a second.
    virtual wheel::clock::time_point shared_moment(wheel::clock::time_point t) const = 0;
    // `{"type":"ping"}` of this second, encoded once for all.
    virtual frame const& ping_frame() = 0;
    // Asks the database about all tokens in the next round of the wheel: one may have run out.
    virtual void check_tokens_soon() = 0;
    // Destroys it.
    virtual void remove(cable_connection& c) = 0;

protected:
    ~cable_host() = default;
};

} // namespace presenced::server
