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
extern statement const sweep;
extern statement const authenticate;
extern statement const check_tokens;
extern statement const check_owners;
extern statement const forget_node;
// Ends the backend of a lost connection; a row with `false` when it would not end.
extern statement const fence;

} // namespace statements

} // namespace presenced::db
