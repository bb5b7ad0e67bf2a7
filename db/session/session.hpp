// One way to open a PostgreSQL session: with timeouts on both sides, with settings that nobody
// else decides, and in the schema in which presenced's tables are. For .cpp files of db/ only: it
// shows libpqxx.
#pragma once

#include "db/session/dialer.hpp"
#include "db/session/error_fields.hpp"
#include "db/session/observer.hpp"
#include "db/session/pqxx_port.hpp"
#include "db/session/session_settings.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace presenced::db {

// The operator's connection string with our defaults behind it, and the secrets in it. A string
// that libpq does not understand is handed on as it is, for libpq to say so.
std::string with_defaults(std::string const& conninfo, std::vector<std::string>& secrets);

// What a session found out about itself when it was opened.
struct session_identity {
    std::string pid;
    std::string started;            // microseconds since 1970; empty when the role may not see it
    std::int64_t database_time = 0; // microseconds since 1970 ...
    std::chrono::steady_clock::time_point asked_at{}; // ... asked for at this moment
    bool read_only = false;
    bool standby = false;
    std::string home;              // the schema of presenced_migrations; empty: there is none
    std::vector<std::string> path; // the operator's search_path: schemas that exist, in order
    std::string search_path;       // ... as the operator wrote it
    std::string role;              // in force: another than `login` after ALTER ROLE ... SET role
    std::string login;             // the role that logged in
};

// A connection, what it said of its errors, and a socket of its own for a watchdog: libpq may close
// its descriptor at any time, and the number may then be somebody else's. One thread.
class session {
public:
    explicit session(raw_link made);
    ~session();
    session(session const&) = delete;
    session& operator=(session const&) = delete;

    // The settings are still ours: no pooler gave us another session. Throws std::runtime_error.
    void check_mark();
    // Sets what has to be set, and looks whether it holds. Throws std::runtime_error, or what
    // libpqxx throws. Server time-outs limit each step, once they are set.
    void configure(session_wishes const& wishes);
    // Runs `work` as the role that logged in: ALTER ROLE ... SET role may have put another one in
    // force, which can neither see nor end the sessions of the first.
    void as_login(std::function<void()> const& work);

    // The server closed the connection, as far as this side knows.
    bool is_dead() const;

    // From now on what PostgreSQL says beside its answers (a WARNING) goes to the log, and is
    // counted by the watcher, which outlives the session. Until then libpq writes it to stderr.
    void report_warnings(observer& watcher);

private:
    PGconn* raw_;             // the link's
    error_recorder recorder_; // outlives the link

public:
    port::link link;
    int socket = -1;
    session_identity self;

    error_fields const& newest_error() const { return recorder_.newest(); }
    void clear_error() { recorder_.clear(); }

private:
    void pin(session_wishes const& wishes);
    void find_home();
    void identify();

    std::string mark_;                    // a setting of ours that no other session has
    std::vector<session_setting> pinned_; // as the server shows them
};

} // namespace presenced::db
