// The settings that every session of presenced has, whatever the role, the database or the
// environment say (ALTER ROLE ... SET, PGOPTIONS, PGCLIENTENCODING).
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace presenced::db {

struct session_wishes {
    std::chrono::milliseconds statement_timeout;
    std::chrono::milliseconds lock_timeout;
    bool durable = true;     // synchronous_commit
    bool index_only = false; // enable_seqscan = off: plans made while a table was empty scan it
                             // whole later
};

struct session_setting {
    std::string name;
    std::string value;
};

// In the order in which they are set. search_path is not among them: it depends on where the
// tables are.
std::vector<session_setting> pinned_settings(session_wishes const& wishes);

// Those that only a superuser may change, and the value with which presence is true.
struct required_setting {
    char const* name;
    char const* value;
    char const* why;
};
std::vector<required_setting> const& required_settings();

} // namespace presenced::db
