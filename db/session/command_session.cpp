#include "db/session/command_session.hpp"

#include "db/session/conninfo.hpp"
#include "db/session/sqlstate.hpp"

namespace presenced::db {

namespace {

// A person waits, and the work may be a migration of a large table.
constexpr session_wishes wishes{std::chrono::seconds{60}, std::chrono::seconds{5}};

} // namespace

command_session::command_session(std::string const& conninfo) {
    // Not left to libpq: its complaint may quote the password.
    if (auto const problem = conninfo_problem(conninfo)) {
        throw schema_error{*problem};
    }
    auto const completed = with_defaults(conninfo, secrets_);
    try {
        stop_signal never;
        session_ = std::make_unique<session>(dial(completed, never));
    } catch (std::runtime_error const& e) {
        throw unreachable_error{"cannot reach the database: " + scrubbed(e.what())};
    }
    if (auto const version = session_->link.server_version(); version < 150'000) {
        throw schema_error{"this is PostgreSQL " + std::to_string(version / 10'000) + "." +
                           std::to_string(version % 10'000) +
                           "; presenced needs PostgreSQL 15 or newer"};
    }
    try {
        session_->configure(wishes);
    } catch (...) {
        rethrow_for_operator();
    }
}

std::string command_session::scrubbed(std::string text) const {
    return without_secrets(std::move(text), secrets_);
}

rows command_session::ask(std::string const& sql) {
    try {
        session_->clear_error();
        pqxx::nontransaction tx{session_->link};
        rows table;
        for (auto const& line : tx.exec(sql)) {
            auto& fields = table.emplace_back();
            for (auto const& f : line) {
                fields.push_back(port::text(f));
            }
        }
        return table;
    } catch (...) {
        rethrow_for_operator();
    }
}

void command_session::rethrow_for_operator() const {
    auto const& state = session_->newest_error().sqlstate;
    auto const is = [&](std::string_view code) {
        return state == code;
    };
    try {
        throw;
    } catch (schema_error const&) {
        throw;
    } catch (unreachable_error const&) {
        throw;
    } catch (pqxx::in_doubt_error const&) {
        throw unreachable_error{"the connection to the database broke in the middle of a commit; "
                                "look what is there before you try again"};
    } catch (std::exception const& e) {
        auto const text = scrubbed(e.what());
        if (sqlstate::is_in_class(state, "08") || state.starts_with("57P") ||
            (state.empty() && !session_->link.is_open())) {
            throw unreachable_error{"the database went away: " + text};
        }
        if (state.empty()) {
            throw schema_error{text}; // ours: a pooler in the wrong mode, a value nobody expected
        }
        if (is(sqlstate::read_only)) {
            throw schema_error{"the database is read-only: " + text +
                               " (a standby? Name several hosts and "
                               "target_session_attrs=read-write, or connect to the primary)"};
        }
        if (is(sqlstate::insufficient_privilege)) {
            throw schema_error{text + " (the role of DATABASE_URL lacks a grant; `presenced "
                                      "doctor` and docs/operations.md list what each role needs)"};
        }
        if (is(sqlstate::undefined_table) || is(sqlstate::undefined_function) ||
            is(sqlstate::undefined_schema)) {
            throw schema_error{text + " (run `presenced migrate`)"};
        }
        if (is(sqlstate::lock_timeout)) {
            throw unreachable_error{text +
                                    " (another session holds the lock; pg_stat_activity shows "
                                    "who. Nothing was changed; try again)"};
        }
        if (sqlstate::meaning_of(state).whom == sqlstate::blame::moment ||
            sqlstate::is_in_class(state, "53")) {
            throw unreachable_error{text + " (nothing was changed; try again)"};
        }
        throw schema_error{text};
    }
}

} // namespace presenced::db
