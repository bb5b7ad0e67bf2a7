// What the authenticator needs of the shard that a request is on. Everything on the shard's thread.
#pragma once

#include "db/store/store.hpp"
#include "server/loop/wheel.hpp"
#include "server/node/node.hpp"

#include <cstdint>
#include <memory>

namespace presenced::server {

// Waits for the answer to auth_host::authenticate().
class token_asker {
public:
    virtual ~token_asker() = default;
    virtual void on_token(db::token_answer const& answer) = 0;
    // on_token() failed half-way: lets go of the client, which closes its connection.
    virtual void drop() = 0;
};

class auth_host {
public:
    virtual node& shared() = 0;
    virtual wheel& timers() = 0;
    // Asks what the token is worth; on_token() gets the answer, unless it is forgotten before.
    virtual std::uint64_t authenticate(db::token_digest const& digest,
                                       std::shared_ptr<token_asker> asker) = 0;
    virtual void forget_lookup(std::uint64_t lookup) = 0;

protected:
    ~auth_host() = default;
};

} // namespace presenced::server
