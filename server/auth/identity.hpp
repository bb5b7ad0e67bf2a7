// Who a client is, once its credential is known. Nothing behind the authenticator asks which kind
// of credential it was.
#pragma once

#include "presence/types.hpp"

#include <cstdint>

namespace presenced::server {

struct identity {
    presence::owner_id owner = 0;
    // When it ends by itself; max() when it does not.
    presence::time_point expires_at = presence::time_point::max();
    // The row of access_tokens that it came from.
    std::int64_t token = 0;
};

} // namespace presenced::server
