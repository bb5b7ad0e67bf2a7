// What all shards of this process share: settings, the store, who may come in, the figures.
// Made by the app, outlives every shard.
#pragma once

#include "db/store/store.hpp"
#include "presence/settings.hpp"
#include "server/node/admission.hpp"
#include "server/node/config.hpp"
#include "server/node/metrics.hpp"

#include <atomic>
#include <string>

namespace presenced::server {

// How far this process is; only ever goes forward.
enum class node_phase : std::uint8_t {
    starting, // no usable database yet: HTTP is answered, upgrades get 503
    serving,
    leaving,  // told to stop: /readyz says 503, so that nobody sends new clients here
    draining, // upgrades get 503, clients are sent away
};

struct node {
    config const& settings;
    metrics& figures;
    admission admission_control;

    std::atomic<node_phase> phase{node_phase::starting};
    // Null while starting. Set before `phase` says serving, kept until every shard has stopped.
    std::atomic<db::store*> store{nullptr};
    // Valid from serving on.
    presence::settings timings;

    // Why the node is not ready, nothing when it is. Thread-safe.
    std::string why_not_ready() const;
    // While starting: what keeps it. Thread-safe.
    void set_start_problem(std::string problem);

    node(config const& s, metrics& f, std::size_t max_connections)
        : settings{s}
        , figures{f}
        , admission_control{max_connections, s.max_connections_per_address,
                            s.max_connections_per_owner}
        , timings{s.timings} {}

private:
    mutable std::mutex mutex_;
    std::string start_problem_ = "waiting for the database";
};

} // namespace presenced::server
