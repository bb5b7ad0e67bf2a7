// The nouns that every layer shares: agents, lease tokens, reasons.
#pragma once

#include <array>
#include <chrono>
#include <compare>
#include <cstdint>
#include <string_view>

namespace presenced::presence {

using agent_id = std::int64_t;
using owner_id = std::int64_t;

// Monotonic time. Ages are decided by the database's clock alone; this one only paces the node.
using clock = std::chrono::steady_clock;
using time_point = clock::time_point;
using duration = clock::duration;

// Names one lease for good: 128 random bits, minted by the node as 22 characters of base64url.
// The default value names nothing.
struct lease_token {
    std::array<char, 22> text{};

    std::string_view view() const { return {text.data(), text.size()}; }
    auto operator<=>(lease_token const&) const = default;
};

// Why a live lease is given up. The database logs it with the transition.
enum class release_reason : std::uint8_t {
    unsubscribed, // the client said so
    disconnected, // its connection ended, by whatever cause
};

} // namespace presenced::presence
