#include "db/connection.hpp"

#include "db/conninfo.hpp"
#include "db/dialer.hpp"
#include "db/pqxx_port.hpp"

#include <libpq-fe.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
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

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A call that the server ends by itself at call_timeout has this long to say so.
constexpr milliseconds watchdog_margin{1'000};

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

// The operator's connection string with our defaults behind it, and the secrets in it. A string
// that libpq does not understand is handed on as it is, for libpq to say so.
std::string completed(std::string const& given, std::vector<std::string>& secrets) {
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

std::string show(milliseconds d) {
    return std::to_string(d.count());
}

bool is_passing(std::string_view sqlstate) {
    return sqlstate == "40001" || sqlstate == "40P01" || sqlstate == "55P03" || sqlstate == "57014";
}

bool is_in_class(std::string_view sqlstate, std::string_view error_class) {
    return sqlstate.substr(0, 2) == error_class;
}

// Errors that speak of the server, the session or its rights, whatever the call asked for. All
// others may come from one element of a batch: a constraint, or a trigger, which may raise any
// error that it likes.
bool is_everybodys(std::string_view sqlstate) {
    constexpr std::array classes{"08", "0A", "25", "26", "28", "3D", "3F", "40",
                                 "42", "53", "54", "57", "58", "F0", "XX"};
    return sqlstate.empty() || std::any_of(classes.begin(), classes.end(),
                                           [&](auto const* c) { return is_in_class(sqlstate, c); });
}

// Those among them that may yet come from one element.
bool is_doubtful(std::string_view sqlstate) {
    constexpr std::array classes{"0A", "42", "54", "XX"};
    return std::any_of(classes.begin(), classes.end(),
                       [&](auto const* c) { return is_in_class(sqlstate, c); });
}

// Errors after which the server may have committed: it was going away, or lost track itself.
bool is_outcome_unknown(std::string_view sqlstate) {
    return sqlstate.empty() || is_in_class(sqlstate, "08") || is_in_class(sqlstate, "57") ||
           is_in_class(sqlstate, "58") || is_in_class(sqlstate, "XX") || sqlstate == "40003";
}

} // namespace

// A libpqxx connection and a duplicate of its socket for the watchdog.
struct connection::session {
    explicit session(raw_link made)
        : link{port::adopt(made.release())} {
        port::never_reconnect(link);
        // Details quote whole rows: tokens and names that have no business in a log.
        link.set_verbosity(port::terse);
        socket = ::fcntl(link.sock(), F_DUPFD_CLOEXEC, 0);
        if (socket < 0) {
            throw std::runtime_error{"no file descriptor left for the database connection"};
        }
    }
    ~session() { ::close(socket); }
    session(session const&) = delete;
    session& operator=(session const&) = delete;

    int socket = -1;
    port::link link;
    std::string pid;
    std::string started;
};

bool call_failure::is_bad_data() const {
    return is_in_class(sqlstate_, "22") || is_in_class(sqlstate_, "23");
}

bool call_failure::is_doubtful() const {
    return db::is_doubtful(sqlstate_);
}

connection::connection(session_context const& context, session_profile profile)
    : context_{context}
    , profile_{std::move(profile)}
    , random_{std::random_device{}()} {
    conninfo_ = completed(context_.conninfo, secrets_);
}

connection::~connection() = default;

std::string connection::scrubbed(std::string text) const {
    for (auto const& secret : secrets_) {
        if (secret.empty()) {
            continue;
        }
        for (auto at = text.find(secret); at != std::string::npos; at = text.find(secret, at)) {
            text.replace(at, secret.size(), "***");
            at += 3;
        }
    }
    return in_one_line(text);
}

bool connection::connect(stop_signal& stop) {
    while (!session_) {
        // The first try after a loss is immediate: most often only the connection was lost.
        if (failures_ > 1) {
            auto const longest = std::min(context_.reconnect_limit,
                                          milliseconds{50} * (1 << std::min(failures_ - 2, 8U)));
            std::uniform_int_distribution<std::int64_t> jitter{longest.count() / 2,
                                                               longest.count()};
            if (stop.wait_for(milliseconds{jitter(random_)})) {
                return false;
            }
        }
        if (stop.is_raised()) {
            return false;
        }
        try {
            open(stop);
        } catch (std::exception const& e) {
            bool const reached = session_ != nullptr;
            // libpqxx 6 then knows no more than that it cannot tell the error's encoding.
            auto const text = reached && !session_->link.is_open()
                                  ? "the server closed the connection"
                                  : scrubbed(e.what());
            drop();
            ++failures_;
            context_.board.failed(profile_.board_number, text, true, reached);
        }
    }
    return true;
}

void connection::open(stop_signal& stop) {
    session_ = std::make_unique<session>(dial(conninfo_, stop));
    auto const deadline = steady_clock::now() + context_.call_timeout + watchdog_margin;
    {
        watchdog::guard const guard{context_.dog, session_->socket, deadline};
        pqxx::nontransaction tx{session_->link};
        // tcp_* do nothing on a Unix socket. Isolation and commit mode are set whatever the
        // database's defaults are, because the promises rest on them.
        tx.exec("SET client_encoding = 'UTF8'; SET client_min_messages = warning;"
                "SET default_transaction_isolation = 'read committed';"
                "SET synchronous_commit = " +
                std::string{profile_.durable ? "on" : "off"} +
                "; SET statement_timeout = " + show(context_.call_timeout) +
                "; SET lock_timeout = " + show(profile_.lock_timeout) +
                "; SET idle_in_transaction_session_timeout = " + show(context_.call_timeout) +
                "; SET idle_session_timeout = 0; SET jit = off"
                "; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2"
                "; SET tcp_keepalives_count = 3; SET tcp_user_timeout = 10000" +
                (profile_.index_only ? "; SET enable_seqscan = off" : ""));
        port::prepare(session_->link, statements::identify.name, statements::identify.sql);
        port::prepare(session_->link, statements::fence.name, statements::fence.sql);
        auto const sent = steady_clock::now();
        auto const who = port::exec_prepared(tx, statements::identify.name, {});
        if (who.empty()) {
            throw std::runtime_error{"the server does not show this session in pg_stat_activity"};
        }
        session_->pid = who[0][0].as<std::string>();
        session_->started = who[0][1].as<std::string>();
        sent_ = sent;
        note_database_time(who[0][2].as<std::int64_t>());
        if (profile_.writes && who[0][3].as<bool>()) {
            throw std::runtime_error{"the server is read-only"};
        }
        // Nor for those who only read: one that lags knows no new tokens, and no end of old ones.
        if (who[0][4].as<bool>()) {
            throw std::runtime_error{"the server is a standby: name the primary, or all servers"};
        }
    }
    if (lost_) {
        fence(stop);
    }
    {
        // Bad SQL or a missing schema shows here, and not in the middle of somebody's request.
        watchdog::guard const guard{context_.dog, session_->socket, deadline};
        for (auto const* s : profile_.statements) {
            port::prepare(session_->link, s->name, s->sql);
        }
    }
    ++generation_;
    context_.board.connected(profile_.board_number);
}

// The lost session's backend may not have noticed, and may still run what it was sent. Where it
// cannot be ended (it is stopped), what it was sent is late before anything is sent again.
void connection::fence(stop_signal& stop) {
    bool ended = true;
    {
        auto const deadline = steady_clock::now() + context_.call_timeout + watchdog_margin;
        watchdog::guard const guard{context_.dog, session_->socket, deadline};
        pqxx::nontransaction tx{session_->link};
        auto const answer =
            port::exec_prepared(tx, statements::fence.name, {lost_->pid, lost_->started});
        ended = answer.empty() || answer[0][0].as<bool>();
    }
    if (!ended) {
        spdlog::warn("database fence lane={} backend={} did not end", profile_.lane, lost_->pid);
        auto const left = duration_cast<milliseconds>(lost_->harmless_at - steady_clock::now());
        if (left.count() > 0 && stop.wait_for(left)) {
            throw std::runtime_error{"stopped"};
        }
    }
    lost_.reset();
}

void connection::drop() {
    if (session_ && !session_->pid.empty() && !lost_) {
        lost_ = predecessor{session_->pid, session_->started,
                            sent_ + request_validity(context_.call_timeout)};
    }
    session_.reset();
}

void connection::replace() {
    auto const now = steady_clock::now();
    if (now - replaced_ >= std::chrono::seconds{1}) {
        replaced_ = now;
        session_.reset();
    }
}

bool connection::is_usable() {
    if (!session_) {
        return false;
    }
    pollfd p{session_->socket, POLLRDHUP, 0};
    if (::poll(&p, 1, 0) > 0) {
        spdlog::debug("database connection lane={} closed by the server", profile_.lane);
        drop();
        return false;
    }
    return true;
}

rows connection::call(statement const& what, parameters const& values, bool of_elements) {
    sent_ = steady_clock::now();
    auto const deadline = sent_ + context_.call_timeout + watchdog_margin;
    bool overran = false;
    try {
        pqxx::result answer;
        {
            watchdog::guard const guard{context_.dog, session_->socket, deadline};
            try {
                pqxx::nontransaction tx{session_->link};
                answer = port::exec_prepared(tx, what.name, values);
            } catch (...) {
                overran = guard.has_fired();
                throw;
            }
        }
        context_.watcher.statement(what.name, steady_clock::now() - sent_, true);
        failures_ = 0;
        context_.board.succeeded(profile_.board_number);
        rows table;
        table.reserve(static_cast<std::size_t>(answer.size()));
        for (auto const& line : answer) {
            row fields;
            fields.reserve(static_cast<std::size_t>(line.size()));
            for (auto const& f : line) {
                fields.push_back(port::text(f));
            }
            table.push_back(std::move(fields));
        }
        return table;
    } catch (pqxx::transaction_rollback const& e) {
        give_up(what, port::rollback_state(e), e.what(), of_elements);
    } catch (pqxx::insufficient_privilege const& e) {
        give_up(what, "42501", e.what(), of_elements); // libpqxx throws this one without its code
    } catch (pqxx::sql_error const& e) {
        give_up(what, e.sqlstate(), e.what(), of_elements);
    } catch (call_failure const&) {
        throw;
    } catch (std::exception const& e) {
        give_up(what, "", overran ? "no answer within the call's deadline" : e.what(), of_elements);
    }
}

void connection::give_up(statement const& what, std::string sqlstate, std::string const& text,
                         bool of_elements) {
    context_.watcher.statement(what.name, steady_clock::now() - sent_, false);
    auto problem = scrubbed(text);
    bool const is_open = session_->link.is_open();
    if (is_open && is_passing(sqlstate)) {
        failures_ = 0;
        context_.board.succeeded(profile_.board_number);
        throw call_failure{fault::passing, std::move(sqlstate), true, problem};
    }
    if (is_open && (!is_everybodys(sqlstate) || (of_elements && is_doubtful(sqlstate)))) {
        failures_ = 0;
        if (!is_everybodys(sqlstate)) {
            context_.board.succeeded(profile_.board_number);
        }
        bool const known = !is_outcome_unknown(sqlstate);
        throw call_failure{fault::element, std::move(sqlstate), known, problem};
    }
    bool const known = is_open && !is_outcome_unknown(sqlstate);
    if (is_open && !sqlstate.empty()) {
        // It answers, and refuses: a new connection alone may not help, so back off.
        failures_ += 2;
        context_.board.failed(profile_.board_number, problem, false, true);
    } else {
        // Once is a lost connection; again, without a success between, is a database that is away
        // although it lets itself be connected to.
        if (++failures_ > 1) {
            context_.board.failed(profile_.board_number, problem, false, true);
        }
        spdlog::debug("database connection lane={} lost reason=\"{}\"", profile_.lane, problem);
    }
    drop();
    throw call_failure{fault::connection, std::move(sqlstate), known, problem};
}

std::int64_t connection::database_time() const {
    auto const now = duration_cast<microseconds>(steady_clock::now().time_since_epoch());
    return (now + database_minus_steady_).count();
}

void connection::note_database_time(std::int64_t at) {
    auto const now = steady_clock::now();
    auto const middle = duration_cast<microseconds>((sent_ + (now - sent_) / 2).time_since_epoch());
    database_minus_steady_ = microseconds{at} - middle;
}

} // namespace presenced::db
