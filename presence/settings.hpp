// The timings that the promises rest on, and the relations between them.
#pragma once

#include "presence/types.hpp"

#include <algorithm>
#include <string>
#include <vector>

namespace presenced::presence {

struct settings {
    // How often a live lease is renewed.
    std::chrono::milliseconds heartbeat{15'000};
    // Age at which a lease is stale. A fact of the deployment: the database's value is used.
    std::chrono::milliseconds stale_after{45'000};
    // How often the sweep puts right what nobody else did, over all nodes.
    std::chrono::milliseconds sweep{5'000};
    // How often a client gets `{"type":"ping"}`. Stock clients give up after 6 s without one.
    std::chrono::milliseconds ping{3'000};
    // Silence after which a client counts as gone (`no_pong`).
    std::chrono::milliseconds peer_timeout{30'000};
    // How long a socket that was lost without a close keeps its lease.
    std::chrono::milliseconds disconnect_grace{0};
    // How long a node may fail to reach the database before it sends its clients to other nodes.
    std::chrono::milliseconds unreachable_limit{120'000};

    // A tick lets leases be judged for this long; a longer gap in the ticks is an amnesty.
    std::chrono::milliseconds judge_window() const { return 2 * sweep; }
    // How often a node ticks: about once a second at the default sweep.
    std::chrono::milliseconds tick() const { return sweep / 5; }
    // Longest pause between two attempts to reconnect to the database.
    std::chrono::milliseconds reconnect_limit() const { return stale_after / 15; }
    // The server pings on the WebSocket level at least so often, to get evidence of the client:
    // for each renewal (P5), and several times before a silent one counts as gone.
    std::chrono::milliseconds native_ping() const { return std::min(heartbeat, peer_timeout / 3); }
    // Pings and renewals of several connections share moments, so far apart at most.
    std::chrono::milliseconds longest_step() const {
        return std::min(
            {ping / 12, native_ping() / 12, heartbeat / 12, std::chrono::milliseconds{250}});
    }
    // Renewals leave in batches: how long the first of one may wait for the others.
    std::chrono::milliseconds gathering() const {
        return std::min(tick() / 4, std::chrono::milliseconds{250});
    }
};

// The relations that do not hold, each as a sentence that names the settings (by environment
// variable), their values and what is allowed; empty when every promise can be kept.
std::vector<std::string> broken_relations(settings const& s);

} // namespace presenced::presence
