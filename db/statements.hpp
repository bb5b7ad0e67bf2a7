// Every SQL statement of the store, by name. Names are those of the metrics.
#pragma once

namespace presenced::db {

struct statement {
    char const* name;
    char const* sql;
};

namespace statements {

extern statement const transition;
extern statement const renew;
extern statement const facts; // what has been migrated, and the recorded stale_after
extern statement const sweep;
extern statement const authenticate;
extern statement const check_tokens;
extern statement const forget_node;
// On every new connection: who it is, what time it is there, whether it can write.
extern statement const identify;
// Ends the backend of a lost connection; a row with `false` when it would not end.
extern statement const fence;

} // namespace statements

} // namespace presenced::db
