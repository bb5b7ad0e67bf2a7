// One blocking session for the command line, and PostgreSQL's errors in the operator's words.
// For .cpp files of db/ only: it shows libpqxx.
#pragma once

#include "db/session/errors.hpp"
#include "db/session/rows.hpp"
#include "db/session/session.hpp"

#include <memory>
#include <string>
#include <string_view>
#include <type_traits>

namespace presenced::db {

class command_session {
public:
    // Connects, and refuses a server that is too old. Throws unreachable_error, schema_error.
    explicit command_session(std::string const& conninfo);

    // Runs work(pqxx::work&) in a transaction and commits. Throws what the constructor throws;
    // libpqxx's exceptions do not come out.
    template <class Work>
    auto transaction(Work work) {
        try {
            session_->clear_error();
            pqxx::work tx{session_->link};
            if constexpr (std::is_void_v<decltype(work(tx))>) {
                work(tx);
                tx.commit();
            } else {
                auto answer = work(tx);
                tx.commit();
                return answer;
            }
        } catch (...) {
            rethrow_for_operator();
        }
    }

    // One statement, which commits by itself; a refusal leaves the session usable.
    rows ask(std::string const& sql);

    error_fields const& newest_error() const { return session_->newest_error(); }
    session_identity const& self() const { return session_->self; }

private:
    // Turns the exception in flight into schema_error or unreachable_error.
    [[noreturn]] void rethrow_for_operator() const;
    std::string scrubbed(std::string text) const;

    std::vector<std::string> secrets_;
    std::unique_ptr<session> session_;
};

// Throws schema_error unless presenced of this version can run on the schema that it sees.
// Returns the number of the newest migration applied.
int check_migrations(pqxx::work& tx, std::string_view binary_version);

} // namespace presenced::db
