#include "server/cable/subscription.hpp"

#include <optional>
#include <utility>

namespace presenced::server {

namespace {

// Nothing for those that are over.
std::optional<subscription_state> state_of(presence::lease_state state) {
    switch (state) {
    case presence::lease_state::acquiring:
        return subscription_state::pending;
    case presence::lease_state::live:
        return subscription_state::confirmed;
    case presence::lease_state::abandoning:
    case presence::lease_state::releasing:
        return subscription_state::releasing;
    case presence::lease_state::lost:
    case presence::lease_state::ended:
        break;
    }
    return std::nullopt;
}

} // namespace

counted_lease::counted_lease(lease_counts& counts)
    : counts_{counts}
    , counted_as_{presence::lease_state::ended} {
    counts_.held.fetch_add(1, std::memory_order_relaxed);
    moves_to(presence::lease_state::acquiring);
}

counted_lease::~counted_lease() {
    counts_.held.fetch_sub(1, std::memory_order_relaxed);
    moves_to(presence::lease_state::ended);
}

void counted_lease::moves_to(presence::lease_state state) {
    auto const before = state_of(std::exchange(counted_as_, state));
    auto const after = state_of(state);
    if (before == after) {
        return;
    }
    if (before) {
        counts_.figures.subscriptions(*before, -1);
    }
    if (after) {
        counts_.figures.subscriptions(*after, +1);
    }
}

} // namespace presenced::server
