// What PostgreSQL says about an error beside its text, which libpqxx does not hand on: code, table,
// constraint. For .cpp files of db/ only: it shows libpq.
#pragma once

#include <libpq-fe.h>

#include <memory>
#include <string>

namespace presenced::db {

struct error_fields {
    std::string sqlstate;
    std::string message; // one sentence; never the DETAIL, which quotes rows
    std::string schema;  // of the table
    std::string table;
    std::string constraint;
};

// Notes the fields of every error that arrives on a connection. One thread.
class error_recorder {
public:
    // The connection must be libpq's own from PQconnectStart; whoever owns it later does not
    // matter.
    explicit error_recorder(PGconn* link);

    void clear() { *newest_ = {}; }
    // Of the newest error since clear(); empty when there was none.
    error_fields const& newest() const { return *newest_; }

private:
    std::shared_ptr<error_fields> newest_; // libpq keeps the address
};

} // namespace presenced::db
