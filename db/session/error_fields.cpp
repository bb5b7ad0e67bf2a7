#include "db/session/error_fields.hpp"

#include <libpq-events.h>

#include <new>

namespace presenced::db {

namespace {

std::string text(PGresult const* result, int field) {
    auto const* value = PQresultErrorField(result, field);
    return value == nullptr ? std::string{} : std::string{value};
}

// libpq calls it for every result, those of errors too, before libpqxx sees the result.
int note(PGEventId event, void* info, void* kept) {
    if (event == PGEVT_RESULTCREATE) {
        auto const* result = static_cast<PGEventResultCreate const*>(info)->result;
        if (PQresultStatus(result) == PGRES_FATAL_ERROR) {
            *static_cast<error_fields*>(kept) = {
                text(result, PG_DIAG_SQLSTATE), text(result, PG_DIAG_MESSAGE_PRIMARY),
                text(result, PG_DIAG_SCHEMA_NAME), text(result, PG_DIAG_TABLE_NAME),
                text(result, PG_DIAG_CONSTRAINT_NAME)};
        }
    }
    return 1;
}

} // namespace

error_recorder::error_recorder(PGconn* link)
    : newest_{std::make_shared<error_fields>()} {
    if (PQregisterEventProc(link, note, "presenced", newest_.get()) == 0) {
        throw std::bad_alloc{};
    }
}

} // namespace presenced::db
