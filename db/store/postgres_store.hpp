// The store on PostgreSQL: database threads, each with its own connection, writing in batches.
//
//   transition lanes (by agent)  acquires and releases, one function call a batch
//   busy lane                    agents and rows that somebody else held, one agent a call
//   renewal thread               renewals in key order, asynchronous commits, and the tick
//   lookup thread                access tokens
//   sweep thread                 the sweep
//
// Thread-safe. Answers arrive on database threads.
#pragma once

#include "db/session/observer.hpp"
#include "db/store/store.hpp"
#include "presence/settings.hpp"

#include <memory>
#include <string>

namespace presenced::db {

struct postgres_options {
    std::string conninfo; // libpq connection string or URI; empty: libpq's own environment
    std::string node;     // this node's name, in rows and in `nodes`
    std::string boot_id;  // this process, told from its predecessors
    std::string version;
    presence::settings timings;
    std::chrono::hours keep_transitions{90 * 24};
    unsigned transition_lanes = 2; // connections in all: this + 4
    // What a statement may take at the server; a second later this side hangs up.
    std::chrono::milliseconds call_timeout{3'000};
};

// Starts the threads and returns at once; they connect by themselves and keep trying with backoff.
// `watcher` must outlive the store. Throws std::runtime_error when a thread cannot be started.
std::unique_ptr<store> make_postgres_store(postgres_options options, observer& watcher);

} // namespace presenced::db
