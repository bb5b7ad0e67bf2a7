// What PostgreSQL's error codes (SQLSTATE) mean to presenced: one table, by name. Pure.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
#pragma once

#include <cstdint>
#include <string_view>

namespace presenced::db::sqlstate {

inline constexpr std::string_view unique_violation = "23505";
inline constexpr std::string_view read_only = "25006";
inline constexpr std::string_view sequence_exhausted = "2200H";
inline constexpr std::string_view undefined_schema = "3F000";
inline constexpr std::string_view serialization_failure = "40001";
inline constexpr std::string_view completion_unknown = "40003";
inline constexpr std::string_view deadlock = "40P01";
inline constexpr std::string_view insufficient_privilege = "42501";
inline constexpr std::string_view undefined_function = "42883";
inline constexpr std::string_view undefined_table = "42P01";
inline constexpr std::string_view lock_timeout = "55P03";
inline constexpr std::string_view cancelled = "57014";

constexpr bool is_in_class(std::string_view state, std::string_view error_class) {
    return state.substr(0, 2) == error_class;
}

// Whom an error speaks against.
enum class blame : std::uint8_t {
    moment,    // rolled back for what others did meanwhile: try again
    request,   // one of the requests of the call: a constraint, or what a trigger raises
    doubtful,  // one of the requests, if the call carries some; else everybody
    everybody, // the server, the session or its rights, whatever the call asked for
};

struct meaning {
    std::string_view code; // of five characters, or a class of two
    blame whom;
    bool may_have_committed; // the server was going away, or lost track itself
    std::string_view why;
};

// The first line whose code begins the SQLSTATE counts.
inline constexpr meaning table[] = {
    {serialization_failure, blame::moment, false, "serialization failure"},
    {deadlock, blame::moment, false, "deadlock"},
    {lock_timeout, blame::moment, false, "lock timeout"},
    {cancelled, blame::moment, false, "cancelled: statement_timeout, or by hand"},
    {completion_unknown, blame::everybody, true, "statement completion unknown"},
    {"08", blame::everybody, true, "connection exception"},
    {"0A", blame::doubtful, false, "feature not supported: a stale plan, a trigger"},
    {"25", blame::everybody, false, "invalid transaction state: read-only"},
    {"26", blame::everybody, false, "invalid statement name: a pooler changed the session"},
    {"28", blame::everybody, false, "invalid authorization"},
    {"3D", blame::everybody, false, "invalid database"},
    {"3F", blame::everybody, false, "invalid schema"},
    {"40", blame::everybody, false, "transaction rollback"},
    {"42", blame::doubtful, false, "rights, names, syntax: ours, or a trigger's"},
    {"53", blame::everybody, false, "insufficient resources"},
    {"54", blame::doubtful, false, "program limit exceeded: a trigger's recursion"},
    {"57", blame::everybody, true, "operator intervention: shutdown"},
    {"58", blame::everybody, true, "system error"},
    {"F0", blame::everybody, false, "configuration file error"},
    {"XX", blame::doubtful, true, "internal error: a damaged page, a broken extension"},
};

// An empty SQLSTATE is a connection that broke without a word.
constexpr meaning meaning_of(std::string_view state) {
    if (state.empty()) {
        return {state, blame::everybody, true, "the connection broke"};
    }
    for (auto const& line : table) {
        if (state.substr(0, line.code.size()) == line.code) {
            return line;
        }
    }
    return {state, blame::request, false, "a constraint, bad data, or what a trigger raises"};
}

// Whether asking again with the same data is in vain, and the client is told so for good.
// Class 23 is a constraint: only one of agent_subscriptions itself is about what the client asked
// for. One that names no table was raised by a trigger, with that intent. Class 22 is bad data,
// but for the sequence of another table that has come to its end.
constexpr bool rejects_subscribe(std::string_view state, std::string_view table_name) {
    return (is_in_class(state, "22") && state != sequence_exhausted) ||
           (is_in_class(state, "23") &&
            (table_name.empty() || table_name == "agent_subscriptions"));
}

} // namespace presenced::db::sqlstate
