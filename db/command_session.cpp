#include "db/command_session.hpp"

#include "db/conninfo.hpp"
#include "db/pqxx_port.hpp"

#include <libpq-fe.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace presenced::db {

namespace {

// The same connection string with what nobody should wait for without a limit. What the operator
// set stays.
std::string with_limits(std::string const& conninfo) {
    // Not left to libpq: its complaint may quote the password.
    if (auto const problem = conninfo_problem(conninfo)) {
        throw schema_error{*problem};
    }
    std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> const parsed{
        PQconninfoParse(conninfo.c_str(), nullptr), &PQconninfoFree};
    if (!parsed) {
        throw std::bad_alloc{};
    }
    std::string text = "fallback_application_name=presenced";
    auto add = [&](std::string_view keyword, std::string_view value) {
        text.append(" ").append(keyword).append("='");
        for (auto const c : value) {
            if (c == '\'' || c == '\\') {
                text += '\\';
            }
            text += c;
        }
        text += '\'';
    };
    bool several = false;
    for (auto option = parsed.get(); option->keyword != nullptr; ++option) {
        std::string_view const keyword{option->keyword};
        several = several || ((keyword == "host" || keyword == "hostaddr") &&
                              option->val != nullptr && std::strchr(option->val, ',') != nullptr);
    }
    for (auto option = parsed.get(); option->keyword != nullptr; ++option) {
        std::string_view const keyword{option->keyword};
        if (keyword == "target_session_attrs" && several &&
            (option->val == nullptr ? std::getenv("PGTARGETSESSIONATTRS") == nullptr
                                    : std::string_view{option->val} == "any")) {
            add(keyword, "primary"); // as a node does; see dial()
            continue;
        }
        if (option->val != nullptr && keyword != "fallback_application_name") {
            add(keyword, option->val);
        } else if (keyword == "connect_timeout" && std::getenv("PGCONNECT_TIMEOUT") == nullptr) {
            add(keyword, "5");
        } else if (keyword == "tcp_user_timeout") {
            add(keyword, "15000");
        }
    }
    return text;
}

// libpqxx 6 loses the SQLSTATE of the errors that have a class of their own.
std::string state_of(pqxx::sql_error const& e) {
    if (!e.sqlstate().empty()) {
        return e.sqlstate();
    }
    if (dynamic_cast<pqxx::insufficient_privilege const*>(&e) != nullptr) {
        return "42501";
    }
    if (dynamic_cast<pqxx::undefined_table const*>(&e) != nullptr) {
        return "42P01";
    }
    if (dynamic_cast<pqxx::undefined_function const*>(&e) != nullptr) {
        return "42883";
    }
    if (dynamic_cast<pqxx::insufficient_resources const*>(&e) != nullptr) {
        return "53000";
    }
    return {};
}

} // namespace

command_session::command_session(std::string const& conninfo) try
    : connection_{with_limits(conninfo)} {
    port::never_reconnect(connection_);
    if (auto const version = connection_.server_version(); version < 150'000) {
        throw schema_error{"this is PostgreSQL " + std::to_string(version / 10'000) + "." +
                           std::to_string(version % 10'000) +
                           "; presenced needs PostgreSQL 15 or newer"};
    }
    transaction([](pqxx::work& tx) {
        tx.exec("SET client_min_messages = warning; SET statement_timeout = '60s'; "
                "SET lock_timeout = '5s'; SET idle_in_transaction_session_timeout = '60s'; "
                "SET default_transaction_isolation = 'read committed'; SET jit = off; "
                "SET synchronous_commit = on");
    });
} catch (schema_error const&) {
    throw;
} catch (unreachable_error const&) {
    throw;
} catch (...) {
    rethrow_for_operator();
}

void command_session::rethrow_for_operator() {
    try {
        throw;
    } catch (schema_error const&) {
        throw;
    } catch (unreachable_error const&) {
        throw;
    } catch (pqxx::broken_connection const& e) {
        throw unreachable_error{"cannot reach the database: " + in_one_line(e.what())};
    } catch (pqxx::in_doubt_error const&) {
        throw unreachable_error{"the connection to the database broke in the middle of a commit; "
                                "look what is there before you try again"};
    } catch (pqxx::transaction_rollback const& e) {
        throw unreachable_error{in_one_line(e.what()) + " (nothing was changed; try again)"};
    } catch (pqxx::sql_error const& e) {
        auto const state = state_of(e);
        auto const text = in_one_line(e.what());
        if (state.starts_with("08") || state.starts_with("57P")) {
            throw unreachable_error{"the database went away: " + text};
        }
        if (state == "25006") {
            throw schema_error{"the database is read-only: " + text +
                               " (a standby? Name several hosts and "
                               "target_session_attrs=read-write, or connect to the primary)"};
        }
        if (state == "42501") {
            throw schema_error{text + " (the role of DATABASE_URL lacks a grant; "
                                      "docs/operations.md lists what each role needs)"};
        }
        if (state == "42P01" || state == "42883" || state == "3F000") {
            throw schema_error{text + " (run `presenced migrate`)"};
        }
        if (state == "55P03") {
            throw unreachable_error{text +
                                    " (another session holds the lock; pg_stat_activity shows "
                                    "who. Nothing was changed; try again)"};
        }
        if (state == "57014" || state.starts_with("53")) {
            throw unreachable_error{text + " (nothing was changed; try again)"};
        }
        throw schema_error{text};
    } catch (pqxx::failure const& e) {
        throw unreachable_error{"the database: " + in_one_line(e.what())};
    }
}

} // namespace presenced::db
