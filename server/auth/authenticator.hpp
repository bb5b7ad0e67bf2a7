// Turns a credential into an identity: the one place that knows kinds of credentials.
// Everything on the shard's thread.
#pragma once

#include "db/store/store.hpp"
#include "server/auth/identity.hpp"
#include "server/node/metrics.hpp"

#include <chrono>
#include <memory>
#include <optional>
#include <string>

namespace presenced::server {

class auth_host;

// What became of a credential.
struct authentication {
    std::optional<identity> who;
    // When there is nobody: why, and whose token it was, 0 when no row has it.
    auth_failure why = auth_failure::no_token;
    db::token_id token = 0;
    db::owner_id owner = 0;
    // For auth_failure::repeated_token: when the bearer may come again.
    std::chrono::seconds wait{0};
};

// Waits for what becomes of a credential.
class authentication_waiter {
public:
    virtual ~authentication_waiter() = default;
    virtual void on_authenticated(authentication result) = 0;
};

// Tells `waiter` once, before it returns or later: within 5 s, whatever the database does.
//   token    nothing when the client sent none
//   address  the client's: attempts without a token are counted by it
// A token that was refused three times within a minute is refused for the rest of that minute
// without a look-up; should it have become valid meanwhile, it is valid again after the minute.
void authenticate(auth_host& home, std::optional<std::string> const& token,
                  std::string const& address, std::unique_ptr<authentication_waiter> waiter);

} // namespace presenced::server
