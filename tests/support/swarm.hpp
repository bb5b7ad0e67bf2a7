// Many sessions on one thread, each subscribed to one agent; counted, not looked at one by one.
#pragma once

#include "tests/support/cable.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace presenced::tests {

// Raises this process's limit of descriptors to the hard one, and returns it.
std::size_t raise_descriptor_limit();

// Thread-safe.
class swarm {
public:
    struct counts {
        std::size_t opened = 0; // so far
        std::size_t confirmed = 0;
        std::size_t rejected = 0;
        std::size_t refused = 0;                        // before the upgrade, or never connected
        std::size_t closed = 0;                         // of those that were open
        std::size_t standing = 0;                       // confirmed and open now
        std::map<std::string, std::size_t> disconnects; // by reason
    };

    // Connects `size` clients with these options, each from one of several loopback addresses, and
    // subscribes them to the agents in turn; `at_once` are under way at a time. With `comes_back`
    // each connects again that long after its end, whatever the end was, as clients do.
    swarm(cable_loop& loop, clients::cable_client_options options,
          std::vector<std::int64_t> const& agents, std::size_t size, std::size_t at_once = 256,
          std::optional<milliseconds> comes_back = std::nullopt);
    ~swarm();

    counts look() const;
    // Whether everybody has got an answer of some kind.
    bool has_settled() const;
    // From connecting to the confirmation, sorted.
    std::vector<milliseconds> latencies() const;

    void close_all();
    // `count` of them from number `first` on: a clean close; the end without a word; no more
    // reading, as of a process that is frozen.
    void close(std::size_t first, std::size_t count);
    void kill(std::size_t first, std::size_t count);
    void freeze(std::size_t first, std::size_t count);

private:
    struct member;

    template <class Act>
    void each(std::size_t first, std::size_t count, Act act);

    void start_next(); // the loop's thread
    void settled();

    cable_loop& loop_;
    std::size_t size_;
    std::optional<milliseconds> comes_back_;
    std::vector<std::unique_ptr<member>> members_;
    std::size_t started_ = 0;
    mutable std::mutex mutex_;
    counts counts_;
    std::size_t settled_ = 0;
    std::vector<milliseconds> latencies_;
};

} // namespace presenced::tests
