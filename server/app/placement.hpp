// Which shard gets the next connection. A pure rule: no state, no sockets.
#pragma once

#include <algorithm>
#include <cstddef>

namespace presenced::server {

// The one with the fewest, but the first until it has `few`: up to there one thread is enough, and
// what few connections cost is the waking up of a second one. `load_of(i)`: how many the i-th has.
template <class LoadOf>
std::size_t place(std::size_t shards, std::size_t few, LoadOf load_of) {
    std::size_t best = 0;
    auto least = std::max(load_of(0), few);
    for (std::size_t i = 1; i < shards; ++i) {
        if (auto const load = std::max(load_of(i), few); load < least) {
            best = i;
            least = load;
        }
    }
    return best;
}

} // namespace presenced::server
