// What the database threads tell about themselves, for metrics. Every member is called from
// database threads, at once from several, and must be quick.
#pragma once

#include <chrono>
#include <cstddef>
#include <string_view>

namespace presenced::db {

class observer {
public:
    virtual ~observer() = default;

    // One round trip, by the statement's name (db/session/statements.hpp).
    virtual void statement(std::string_view /*name*/, std::chrono::nanoseconds /*took*/,
                           bool /*succeeded*/) {}
    // One batch left its lane ("transition", "busy", "renewal", "lookup").
    virtual void batch(std::string_view /*lane*/, std::size_t /*elements*/) {}
    virtual void flipped(bool /*active*/, std::string_view /*reason*/) {}
    // result: "renewed", "missing", "held".
    virtual void renewals(std::string_view /*result*/, std::size_t /*count*/) {}
    // What this node's sweep put right; cause: "expired", "reconciled".
    virtual void repaired(std::string_view /*cause*/, std::size_t /*count*/) {}
    virtual void database_up(bool /*up*/) {}
    // PostgreSQL said something beside its answer: a WARNING, most often of a function of ours.
    virtual void warned() {}
};

} // namespace presenced::db
