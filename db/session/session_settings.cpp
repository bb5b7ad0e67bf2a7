#include "db/session/session_settings.hpp"

namespace presenced::db {

namespace {

struct fixed_setting {
    char const* name;
    char const* value;
    char const* why; // for the reader of this table
};

// Made from the whole list of PostgreSQL 15 and 17 (SELECT name, context FROM pg_settings): each
// setting of context `user` that changes what a statement means, which rows it sees, what a value
// looks like, in which order rows are locked, or how long a session lives. Not here: cost and
// memory settings, logging, application_name (the operator's), default_tablespace (the operator's)
// and default_transaction_read_only (an operator who sets it means it; the node then says so).
constexpr fixed_setting fixed[] = {
    {"client_encoding", "UTF8", "the wire is UTF-8; PGCLIENTENCODING garbles names"},
    {"client_min_messages", "warning", "notices are nobody's to read"},
    {"row_security", "off", "hidden rows are an error: not an unknown token, not a lost lease"},
    {"default_transaction_isolation", "read committed",
     "the functions need a snapshot a statement"},
    {"default_transaction_deferrable", "off", "it may wait for others"},
    {"idle_session_timeout", "0", "idle sessions are ready, not forgotten"},
    {"transaction_timeout", "0", "PostgreSQL 17; statement_timeout is the limit"},
    {"tcp_keepalives_idle", "5", "a server that lost this node ends its backend"},
    {"tcp_keepalives_interval", "2", "the same"},
    {"tcp_keepalives_count", "3", "the same"},
    {"tcp_user_timeout", "10000", "the same"},
    {"TimeZone", "UTC", "'1 day' has 24 hours, and dates print the same everywhere"},
    {"DateStyle", "ISO, MDY", "dates that are read or written as text"},
    {"IntervalStyle", "postgres", "how '-1 2:03' is read"},
    {"bytea_output", "hex", "token digests that are printed"},
    {"extra_float_digits", "1", "numbers that are printed"},
    {"array_nulls", "on", "off makes NULL in an array the word NULL"},
    {"standard_conforming_strings", "on", "off makes backslashes in literals escapes"},
    {"transform_null_equals", "off", "on changes what = NULL means"},
    {"quote_all_identifiers", "off", "function bodies are searched for names"},
    {"check_function_bodies", "on", "migrate: a function that cannot work is refused"},
    {"default_table_access_method", "heap", "migrate: renewals count on HOT updates"},
    {"restrict_nonsystem_relation_kind", "", "PostgreSQL 17; 'view' forbids the view of live rows"},
    {"exit_on_error", "off", "on ends the session with every error"},
    {"plan_cache_mode", "auto", "forcing custom plans costs more than the calls"},
    {"jit", "off", "wrong estimates switch it on for calls of a millisecond"},
    {"enable_indexscan", "on", "the order in which renewals lock their rows"},
    {"enable_indexonlyscan", "on", "the same"},
    {"enable_nestloop", "on", "every statement reaches a table by an index"},
    {"enable_sort", "on", "locks are taken in order"},
};

std::string in_milliseconds(std::chrono::milliseconds d) {
    return std::to_string(d.count()) + "ms";
}

} // namespace

std::vector<session_setting> pinned_settings(session_wishes const& wishes) {
    std::vector<session_setting> all;
    for (auto const& f : fixed) {
        all.push_back({f.name, f.value});
    }
    all.push_back({"statement_timeout", in_milliseconds(wishes.statement_timeout)});
    all.push_back({"lock_timeout", in_milliseconds(wishes.lock_timeout)});
    all.push_back(
        {"idle_in_transaction_session_timeout", in_milliseconds(wishes.statement_timeout)});
    all.push_back({"synchronous_commit", wishes.durable ? "on" : "off"});
    all.push_back({"enable_seqscan", wishes.index_only ? "off" : "on"});
    return all;
}

std::vector<required_setting> const& required_settings() {
    static std::vector<required_setting> const all{
        {"session_replication_role", "origin",
         "triggers and foreign keys do not run in sessions of this role"},
    };
    return all;
}

} // namespace presenced::db
