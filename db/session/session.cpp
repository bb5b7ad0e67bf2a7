#include "db/session/session.hpp"

#include "base/line_limit.hpp"
#include "base/text.hpp"
#include "db/session/conninfo.hpp"

#include <spdlog/spdlog.h>

#include <array>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string_view>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) && PQXX_VERSION_MAJOR < 7
// libpqxx 6 drops the PGresult of a call during which the connection broke: about a kilobyte a
// lost connection, which is not worth a report.
extern "C" char const* __lsan_default_suppressions();
extern "C" char const* __lsan_default_suppressions() {
    // By module: most of the places have no symbol.
    return "leak:libpqxx-6\n";
}
#endif

namespace presenced::db {

namespace {

constexpr unsigned lines_a_second = 5; // of each thread

// What is added unless the operator set it: PostgreSQL's own defaults wait for ever.
struct default_option {
    char const* keyword;
    char const* value;
    char const* environment;
};
constexpr default_option default_options[] = {
    {"fallback_application_name", "presenced", nullptr},
    {"connect_timeout", "3", "PGCONNECT_TIMEOUT"},
    {"keepalives_idle", "5", nullptr},
    {"keepalives_interval", "2", nullptr},
    {"keepalives_count", "3", nullptr},
    {"tcp_user_timeout", "10000", nullptr},
};

// For a connection string.
std::string quoted(std::string_view value) {
    std::string text = "'";
    for (char const c : value) {
        if (c == '\'' || c == '\\') {
            text += '\\';
        }
        text += c;
    }
    return text + "'";
}

// For SQL.
std::string identifier(std::string_view name) {
    std::string text = "\"";
    for (char const c : name) {
        text += c;
        if (c == '"') {
            text += c;
        }
    }
    return text + "\"";
}

std::string random_mark() {
    std::random_device random;
    return std::to_string(::getpid()) + '-' + std::to_string(random()) + '-' +
           std::to_string(random());
}

constexpr auto wrong_pooling =
    "the connection pooler gives presenced sessions that others use as well: set "
    "pool_mode = session in PgBouncer, with server_reset_query = DISCARD ALL";

} // namespace

std::string with_defaults(std::string const& given, std::vector<std::string>& secrets) {
    if (char const* password = std::getenv("PGPASSWORD"); password != nullptr) {
        secrets.emplace_back(password);
    }
    auto* const options = PQconninfoParse(given.c_str(), nullptr);
    if (options == nullptr) {
        secrets.push_back(given);
        return given;
    }
    std::string text;
    auto is_set = [&](std::string_view keyword) {
        for (auto const* o = options; o->keyword != nullptr; ++o) {
            if (o->keyword == keyword) {
                return o->val != nullptr;
            }
        }
        return false;
    };
    for (auto const* o = options; o->keyword != nullptr; ++o) {
        if (o->val == nullptr) {
            continue;
        }
        std::string_view const keyword{o->keyword};
        if (keyword == "password" || keyword == "sslpassword") {
            secrets.emplace_back(o->val);
        }
        text += std::string{keyword} + '=' + quoted(o->val) + ' ';
    }
    for (auto const& d : default_options) {
        bool const in_environment =
            d.environment != nullptr && std::getenv(d.environment) != nullptr;
        if (!is_set(d.keyword) && !in_environment) {
            text += std::string{d.keyword} + '=' + d.value + ' ';
        }
    }
    PQconninfoFree(options);
    return text;
}

session::session(raw_link made)
    : raw_{made.get()}
    , recorder_{made.get()}
    , link{port::adopt(made.release())}
    , mark_{random_mark()} {
    port::never_reconnect(link);
    // Details quote whole rows: tokens and names that have no business in a log.
    link.set_verbosity(port::terse);
    socket = ::fcntl(link.sock(), F_DUPFD_CLOEXEC, 0);
    if (socket < 0) {
        throw std::runtime_error{"no file descriptor left for the database connection"};
    }
}

session::~session() {
    ::close(socket);
}

// A receiver and not a processor, which libpqxx sets for itself. The DETAIL is left out: it quotes
// rows.
void session::report_warnings(observer& watcher) {
    auto const receive = [](void* told, PGresult const* notice) {
        static_cast<observer*>(told)->warned();
        try {
            static thread_local base::line_limit limit{lines_a_second};
            auto const field = [notice](int which) {
                auto const* text = PQresultErrorField(notice, which);
                return text == nullptr ? std::string{} : base::printable(text);
            };
            if (auto const more = limit.admit()) {
                spdlog::warn("database says severity={} sqlstate={} message=\"{}\"{}",
                             field(PG_DIAG_SEVERITY_NONLOCALIZED), field(PG_DIAG_SQLSTATE),
                             in_one_line(field(PG_DIAG_MESSAGE_PRIMARY)), *more);
            }
        } catch (std::exception const&) { // not even memory for the line; libpq is C
        }
    };
    PQsetNoticeReceiver(raw_, receive, &watcher);
}

bool session::is_dead() const {
    pollfd p{socket, POLLRDHUP, 0};
    return ::poll(&p, 1, 0) > 0;
}

void session::configure(session_wishes const& wishes) {
    {
        pqxx::nontransaction tx{link};
        auto const before =
            tx.exec("SELECT coalesce(current_setting('presenced.session', true), '')");
        if (before[0][0].size() > 0) {
            throw std::runtime_error{wrong_pooling};
        }
    }
    pin(wishes);
    find_home();
    identify();
    check_mark();
}

void session::pin(session_wishes const& wishes) {
    auto wanted = pinned_settings(wishes);
    pqxx::nontransaction tx{link};
    std::string values = "('presenced.session', " + tx.quote(mark_) + ")";
    for (auto const& w : wanted) {
        values += ", (" + tx.quote(w.name) + ", " + tx.quote(w.value) + ")";
    }
    // Not every version has all of them.
    for (auto const& line :
         tx.exec("SELECT w.name, pg_catalog.set_config(w.name, w.value, false) "
                 "FROM (VALUES " +
                 values +
                 ") AS w (name, value) WHERE w.name = 'presenced.session' "
                 "OR EXISTS (SELECT FROM pg_catalog.pg_settings s WHERE s.name = w.name)")) {
        pinned_.push_back({line[0].c_str(), line[1].c_str()});
    }
}

// presenced's objects are found in their schema, whatever stands before it in the operator's
// search_path; what follows is for triggers of others, which may count on it. Tables that a session
// makes for itself come last, or they would hide others.
void session::find_home() {
    pqxx::nontransaction tx{link};
    for (auto const& line : tx.exec(
             "SELECT coalesce((SELECT n.nspname FROM pg_catalog.pg_class c "
             "                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
             "                 WHERE c.oid = pg_catalog.to_regclass('presenced_migrations')), ''), "
             "       coalesce(p.name, ''), current_user, session_user, "
             "       pg_catalog.current_setting('search_path') "
             "FROM (SELECT) one LEFT JOIN pg_catalog.unnest(pg_catalog.current_schemas(false)) "
             "WITH ORDINALITY AS p (name, ord) ON true ORDER BY p.ord")) {
        self.home = line[0].c_str();
        self.role = line[2].c_str();
        self.login = line[3].c_str();
        self.search_path = line[4].c_str();
        std::string const schema = line[1].c_str();
        if (!schema.empty()) {
            self.path.push_back(schema);
        }
    }
    std::string path = self.home.empty() ? "" : identifier(self.home) + ", ";
    for (auto const& schema : self.path) {
        if (schema != self.home && !schema.starts_with("pg_")) {
            path += identifier(schema) + ", ";
        }
    }
    if (path.empty()) {
        return; // it leads nowhere, and is shown to the operator as it is
    }
    auto const set = tx.exec("SELECT pg_catalog.set_config('search_path', " +
                             tx.quote(path + "pg_temp") + ", false)");
    pinned_.push_back({"search_path", set[0][0].c_str()});
}

void session::as_login(std::function<void()> const& work) {
    if (self.role == self.login) {
        work();
        return;
    }
    auto const set = [&](std::string const& role) {
        pqxx::nontransaction tx{link};
        tx.exec("SET ROLE " + role);
    };
    set("NONE");
    try {
        work();
    } catch (...) {
        set(identifier(self.role));
        throw;
    }
    set(identifier(self.role));
}

void session::identify() {
    as_login([&] {
        pqxx::nontransaction tx{link};
        try {
            auto const seen = tx.exec(
                "SELECT coalesce((extract(epoch FROM backend_start) * 1000000)::bigint::text, '') "
                "FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()");
            self.started = seen.empty() ? "" : seen[0][0].c_str();
        } catch (pqxx::broken_connection const&) {
            throw;
        } catch (pqxx::sql_error const&) {
            self.started.clear(); // the role may not read the view; said by whoever judges
        }
    });
    self.asked_at = std::chrono::steady_clock::now();
    pqxx::nontransaction tx{link};
    auto const who =
        tx.exec("SELECT pg_catalog.pg_backend_pid(), "
                "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint, "
                "pg_catalog.current_setting('transaction_read_only')::boolean, "
                "pg_catalog.pg_is_in_recovery()");
    self.pid = who[0][0].c_str();
    self.database_time = who[0][1].as<std::int64_t>();
    self.read_only = who[0][2].as<bool>();
    self.standby = who[0][3].as<bool>();
}

// In a statement of its own: behind a pooler in the wrong mode it may reach another backend.
void session::check_mark() {
    pqxx::nontransaction tx{link};
    std::string names;
    for (auto const& p : pinned_) {
        names += (names.empty() ? "(" : ", (") + tx.quote(p.name) + ", " + tx.quote(p.value) + ")";
    }
    auto const lost = tx.exec("SELECT w.name FROM (VALUES " + names +
                              ") AS w (name, value) WHERE "
                              "pg_catalog.current_setting(w.name, true) IS DISTINCT FROM w.value "
                              "ORDER BY w.name = 'presenced.session' DESC LIMIT 1");
    if (lost.empty()) {
        return;
    }
    std::string const name = lost[0][0].c_str();
    throw std::runtime_error{name == "presenced.session"
                                 ? std::string{wrong_pooling}
                                 : "the setting " + name +
                                       " of presenced's session does not stay as presenced set it"};
}

} // namespace presenced::db
