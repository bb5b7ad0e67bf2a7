// What the command line asks of the database: agents, tokens, status. Blocking, one connection.
#pragma once

#include "db/admin/schema.hpp"
#include "db/store/store.hpp"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace presenced::db {

struct agent_row {
    agent_id id;
    owner_id owner;
    std::string name;
    bool routing_active;
    std::string routing_changed_at; // RFC 3339 UTC or an infinity, empty when it never did
    std::string created_at;
    std::size_t sessions; // live ones
};

struct token_row {
    token_id id;
    owner_id owner;
    std::string role;  // session, peer, app or admin
    agent_list agents; // null: all of the owner
    std::string label;
    std::string created_at;
    std::string expires_at; // empty: never
    std::string revoked_at; // empty: not
    std::string state;      // "active", "expired", "revoked"
};

struct session_row {
    agent_id agent;
    std::string session_id; // empty: none
    std::string node;
    std::string boot_id; // empty: not known, or several share the name
    // Nothing where somebody wrote infinity into the row.
    std::optional<std::chrono::milliseconds> age;       // since it subscribed
    std::optional<std::chrono::milliseconds> last_seen; // since it was renewed
};

struct node_row {
    std::string node;
    std::string boot_id;
    std::string version;
    std::optional<std::chrono::milliseconds> up; // nothing: infinity, as above
    std::optional<std::chrono::milliseconds> since_tick;
    std::size_t sessions; // 0 when shares_name: rows bear names only
    bool gone;            // no tick for stale_after
    bool shares_name;     // ticks beside another boot of this name
};

struct status_report {
    bool presence_known;           // false: no node ticks, the flags say nothing
    std::vector<agent_row> agents; // live ones
    std::vector<session_row> sessions;
    std::vector<node_row> nodes;
};

struct token_order {
    owner_id owner = 0;
    token_role role = token_role::session;
    std::vector<agent_id> agents{}; // none: all of the owner
    std::string label{};
    token_digest digest{};
    std::optional<std::chrono::seconds> expires_in = std::nullopt; // until it is revoked
};

// Throws schema_error or unreachable_error, each with one line for the operator.
class admin {
public:
    explicit admin(std::string const& conninfo);
    ~admin();

    agent_row create_agent(owner_id owner, std::string const& name);
    std::vector<agent_row> agents();
    // Roles above peer: as the owner of the table only, which the error says.
    token_row issue_token(token_order const& order);
    std::vector<token_row> tokens();
    // Nothing when there is no such token.
    std::optional<token_row> revoke_token(token_id id);
    status_report status();

private:
    struct session;
    std::unique_ptr<session> session_;
};

} // namespace presenced::db
