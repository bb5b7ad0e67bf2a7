// What an access token is worth: for whom, in which role, for which agents. Columns of
// access_tokens.
#pragma once

#include "presence/types.hpp"

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace presenced::db {

using token_id = std::int64_t; // access_tokens.id

// Each role may do what the roles before it may.
enum class token_role : std::uint8_t { session, peer, app, admin };

inline constexpr std::array<std::string_view, 4> role_names{"session", "peer", "app", "admin"};

constexpr std::string_view to_string(token_role role) {
    return role_names[static_cast<std::size_t>(role)];
}

// Nothing when there is no such role.
constexpr std::optional<token_role> role_of(std::string_view name) {
    for (std::size_t i = 0; i < role_names.size(); ++i) {
        if (role_names[i] == name) {
            return static_cast<token_role>(i);
        }
    }
    return std::nullopt;
}

// The agents that a token is narrowed to, ascending, each once. Null: all agents of the owner.
// Most tokens have no list, and a session that has one shares it with nobody who writes.
using agent_list = std::shared_ptr<std::vector<presence::agent_id> const>;

inline bool includes(agent_list const& agents, presence::agent_id agent) {
    return agents == nullptr || std::binary_search(agents->begin(), agents->end(), agent);
}

struct token_grant {
    token_id id = 0;
    presence::owner_id owner = 0;
    token_role role = token_role::session;
    agent_list agents;

    // By what the lists hold. A null list comes first: it is another grant than an empty one.
    friend std::strong_ordering operator<=>(token_grant const& a, token_grant const& b) {
        if (auto const c = a.id <=> b.id; c != 0) {
            return c;
        }
        if (auto const c = a.owner <=> b.owner; c != 0) {
            return c;
        }
        if (auto const c = a.role <=> b.role; c != 0) {
            return c;
        }
        if (a.agents == b.agents) {
            return std::strong_ordering::equal;
        }
        if (a.agents == nullptr || b.agents == nullptr) {
            return a.agents == nullptr ? std::strong_ordering::less : std::strong_ordering::greater;
        }
        return *a.agents <=> *b.agents;
    }
    friend bool operator==(token_grant const& a, token_grant const& b) { return (a <=> b) == 0; }
};

} // namespace presenced::db
