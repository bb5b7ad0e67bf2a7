// Who a client is, once its credential is known. Nothing behind the authenticator asks which kind
// of credential it was.
#pragma once

#include "db/store/token_grant.hpp"
#include "presence/types.hpp"

namespace presenced::server {

struct identity {
    presence::owner_id owner = 0;
    // When it ends by itself; max() when it does not.
    presence::time_point expires_at = presence::time_point::max();
    // The row of access_tokens that it came from.
    db::token_id token = 0;
    // Null: all agents of the owner. A list narrows every right of every role.
    db::agent_list agents = nullptr;
    db::token_role role = db::token_role::session;

    // False: to this client the agent is one that does not exist. True says nothing of who owns the
    // agent: the database does.
    bool includes(presence::agent_id agent) const { return db::includes(agents, agent); }
    // What it was worth when the client came in.
    db::token_grant grant() const { return {token, owner, role, agents}; }
};

} // namespace presenced::server
