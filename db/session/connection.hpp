// One database thread's session: opened with timeouts on both sides, replaced when it is lost, and
// its predecessor fenced, so that a request still sitting there cannot take effect after its retry.
#pragma once

#include "db/session/judgement.hpp"
#include "db/session/observer.hpp"
#include "db/session/rows.hpp"
#include "db/session/sqlstate.hpp"
#include "db/session/statements.hpp"
#include "db/session/status_board.hpp"
#include "db/session/stop_signal.hpp"
#include "db/session/watchdog.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace presenced::db {

class session;

// What all sessions of a store share.
struct session_context {
    std::string conninfo; // as the operator gave it
    std::chrono::milliseconds call_timeout;
    std::chrono::milliseconds reconnect_limit;
    watchdog& dog;
    status_board& board;
    observer& watcher;
};

// What is particular to one session.
struct session_profile {
    std::string lane;
    std::size_t board_number;
    bool writes;  // a read-only server will not do
    bool durable; // synchronous_commit
    std::chrono::milliseconds lock_timeout;
    bool index_only; // enable_seqscan = off: plans made while a table was empty scan it whole later
    std::vector<statement const*> statements;
};

// Whom a failed call speaks against.
enum class fault : std::uint8_t {
    passing,    // deadlock, serialization, lock timeout, cancelled: rolled back, try again
    element,    // something in the call: bad data, a constraint, what a trigger raises
    connection, // the server, the session or its rights; the session is gone
};

class call_failure : public std::runtime_error {
public:
    // `table`: to which the constraint belongs that was broken, if there is one.
    call_failure(fault kind, std::string sqlstate, bool outcome_known, std::string const& text,
                 std::string table = {})
        : std::runtime_error{text}
        , kind_{kind}
        , sqlstate_{std::move(sqlstate)}
        , table_{std::move(table)}
        , outcome_known_{outcome_known} {}

    fault kind() const { return kind_; }
    // Empty when the connection broke without a word.
    std::string const& sqlstate() const { return sqlstate_; }
    // It certainly did not commit.
    bool outcome_known() const { return outcome_known_; }
    bool is_lock_timeout() const { return sqlstate_ == sqlstate::lock_timeout; }
    // The server cancelled it, for taking too long most often.
    bool is_overrun() const { return sqlstate_ == sqlstate::cancelled; }
    // The same subscribe will be refused again, for what it asks for.
    bool is_bad_data() const { return sqlstate::rejects_subscribe(sqlstate_, table_); }
    // A mistake in somebody's trigger, a damaged page; or a plan of the session's that has become
    // stale, wrong rights, a missing table.
    bool is_doubtful() const {
        return sqlstate::meaning_of(sqlstate_).whom == sqlstate::blame::doubtful;
    }

private:
    fault kind_;
    std::string sqlstate_;
    std::string table_;
    bool outcome_known_;
};

// In PostgreSQL's text form.
using parameters = std::vector<std::optional<std::string>>;

// Owned and used by one thread.
class connection {
public:
    connection(session_context const& context, session_profile profile);
    ~connection();

    // Opens a session if there is none, or none that lives, again and again with backoff. False:
    // stopped before that.
    bool connect(stop_signal& stop);
    // The session is there and the server has not closed it, as far as this side knows.
    bool is_usable();
    // A call or an attempt to connect has failed, and no call has succeeded since. A new session
    // alone does not show that calls get through again.
    bool is_unproven() const { return failures_ > 0; }
    // One autocommit statement. Throws call_failure; after fault::connection there is no session.
    // `of_elements`: it carries some, and so a doubtful error is taken for that of one of them.
    rows call(statement const& what, parameters const& values, bool of_elements = false);
    // Whether the database lets this session's role do the whole work of a node. Does not speak for
    // the session's own calls. Throws call_failure when that could not be found out.
    judgement judge(std::string_view binary_version);
    // The next call has a session with fresh plans, but not more often than once a second. For one
    // with which nothing was wrong for certain: all that it was sent is answered.
    void replace();
    // Counts sessions; a change means that one was lost in between.
    unsigned generation() const { return generation_; }

    // The database's clock just now, in microseconds since 1970, as far as answers tell.
    std::int64_t database_time() const;
    // An answer said that it is `at` there, for the call that has just returned.
    void note_database_time(std::int64_t at);

private:
    struct predecessor {
        std::string pid;
        std::string started;
        std::chrono::steady_clock::time_point harmless_at; // what was sent there is late by then
    };

    void open(stop_signal& stop);
    void fence(stop_signal& stop);
    bool end_predecessor();
    void drop();
    rows ask(std::string const& sql);
    [[noreturn]] void give_up(statement const& what, std::string const& text, bool of_elements);
    std::string scrubbed(std::string text) const;

    session_context const& context_;
    session_profile profile_;
    std::string conninfo_;
    std::vector<std::string> secrets_;
    std::unique_ptr<session> session_;
    std::optional<predecessor> lost_;
    std::chrono::steady_clock::time_point sent_{};
    std::chrono::steady_clock::time_point replaced_{};
    std::chrono::microseconds database_minus_steady_{0};
    unsigned generation_ = 0;
    unsigned failures_ = 0;
    std::minstd_rand random_;
};

// Of a batch that failed for the sake of one of its elements: how many to send at a time, so that
// it is found in few calls, of which no more than four fail (the batch, its part, a part of that,
// itself).
constexpr std::size_t part_size(std::size_t batch) {
    return batch > 25 ? batch / 20 : 1;
}

// How long a request stays valid at the database after it was sent.
constexpr std::chrono::microseconds request_validity(std::chrono::milliseconds call_timeout) {
    return call_timeout + std::chrono::seconds{2};
}

} // namespace presenced::db
