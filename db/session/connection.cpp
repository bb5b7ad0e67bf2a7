#include "db/session/connection.hpp"

#include "db/session/conninfo.hpp"
#include "db/session/dialer.hpp"
#include "db/session/pqxx_port.hpp"
#include "db/session/session.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A call that the server ends by itself at call_timeout has this long to say so.
constexpr milliseconds watchdog_margin{1'000};

rows table_of(pqxx::result const& answer) {
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
}

} // namespace

connection::connection(session_context const& context, session_profile profile)
    : context_{context}
    , profile_{std::move(profile)}
    , random_{std::random_device{}()} {
    conninfo_ = with_defaults(context_.conninfo, secrets_);
}

connection::~connection() = default;

std::string connection::scrubbed(std::string text) const {
    return without_secrets(std::move(text), secrets_);
}

bool connection::connect(stop_signal& stop) {
    while (!is_usable()) {
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
            bool const is_refused = reached && session_->link.is_open() &&
                                    sqlstate::meaning_of(session_->newest_error().sqlstate).whom ==
                                        sqlstate::blame::doubtful;
            drop();
            ++failures_;
            if (is_refused) {
                context_.board.refused(profile_.board_number, text);
            } else {
                context_.board.failed(profile_.board_number, text, true, reached);
            }
        }
    }
    return true;
}

void connection::open(stop_signal& stop) {
    session_ = std::make_unique<session>(dial(conninfo_, stop));
    session_->report_warnings(context_.watcher);
    {
        watchdog::guard const guard{context_.dog, session_->socket,
                                    steady_clock::now() + context_.call_timeout + watchdog_margin};
        session_->configure(
            {context_.call_timeout, profile_.lock_timeout, profile_.durable, profile_.index_only});
        auto const& self = session_->self;
        sent_ = self.asked_at;
        note_database_time(self.database_time);
        if (profile_.writes && self.read_only) {
            throw std::runtime_error{"the server is read-only"};
        }
        // Nor for those who only read: one that lags knows no new tokens, and no end of old ones.
        if (self.standby) {
            throw std::runtime_error{"the server is a standby: name the primary, or all servers"};
        }
    }
    if (lost_) {
        fence(stop);
    }
    {
        // Bad SQL or a missing schema shows here, and not in the middle of somebody's request.
        watchdog::guard const guard{context_.dog, session_->socket, // the fence may have waited
                                    steady_clock::now() + context_.call_timeout + watchdog_margin};
        for (auto const* s : profile_.statements) {
            port::prepare(session_->link, s->name, s->sql);
        }
    }
    ++generation_;
    context_.board.connected(profile_.board_number);
}

// The lost session's backend may not have noticed, and may still run what it was sent. Where it
// cannot be ended (it is stopped, or this role may not), what it was sent is late before anything
// is sent again.
void connection::fence(stop_signal& stop) {
    if (!end_predecessor()) {
        spdlog::warn("database fence lane={} backend={} did not end", profile_.lane, lost_->pid);
        auto const left = duration_cast<milliseconds>(lost_->harmless_at - steady_clock::now());
        if (left.count() > 0 && stop.wait_for(left)) {
            throw std::runtime_error{"stopped"};
        }
    }
    lost_.reset();
}

bool connection::end_predecessor() {
    if (lost_->started.empty()) {
        return false; // another session may have its pid by now
    }
    auto const deadline = steady_clock::now() + context_.call_timeout + watchdog_margin;
    watchdog::guard const guard{context_.dog, session_->socket, deadline};
    bool ended = false;
    try {
        session_->as_login([&] {
            port::prepare(session_->link, statements::fence.name, statements::fence.sql);
            pqxx::nontransaction tx{session_->link};
            auto const answer =
                port::exec_prepared(tx, statements::fence.name, {lost_->pid, lost_->started});
            ended = answer.empty() || answer[0][0].as<bool>();
        });
    } catch (pqxx::broken_connection const&) {
        throw;
    } catch (pqxx::sql_error const& e) {
        if (!session_->link.is_open()) {
            throw;
        }
        spdlog::debug("database fence lane={} refused reason=\"{}\"", profile_.lane,
                      scrubbed(e.what()));
    }
    return ended;
}

void connection::drop() {
    if (session_ && !session_->self.pid.empty() && !lost_) {
        lost_ = predecessor{session_->self.pid, session_->self.started,
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
    if (session_->is_dead()) {
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
    session_->clear_error();
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
        return table_of(answer);
    } catch (std::exception const& e) {
        give_up(what, overran ? "no answer within the call's deadline" : e.what(), of_elements);
    }
}

void connection::give_up(statement const& what, std::string const& text, bool of_elements) {
    context_.watcher.statement(what.name, steady_clock::now() - sent_, false);
    auto problem = scrubbed(text);
    auto const& error = session_->newest_error();
    auto const meaning = sqlstate::meaning_of(error.sqlstate);
    bool const is_open = session_->link.is_open();
    using sqlstate::blame;
    if (is_open && meaning.whom == blame::moment) {
        failures_ = 0;
        context_.board.succeeded(profile_.board_number);
        throw call_failure{fault::passing, error.sqlstate, true, problem};
    }
    if (is_open && meaning.whom != blame::request) {
        context_.board.suspect(); // is it a right that is missing, a table that is not there?
    }
    if (is_open &&
        (meaning.whom == blame::request || (of_elements && meaning.whom == blame::doubtful))) {
        failures_ = 0;
        if (meaning.whom == blame::request) {
            context_.board.succeeded(profile_.board_number);
        }
        auto table = error.table;
        if (!table.empty() && error.schema != session_->self.home) {
            table = error.schema + "." + table;
        }
        if (!table.empty() && !sqlstate::rejects_subscribe(error.sqlstate, table)) {
            context_.board.suspect(); // the log, most likely
        }
        throw call_failure{fault::element, error.sqlstate, !meaning.may_have_committed, problem,
                           std::move(table)};
    }
    bool const known = is_open && !meaning.may_have_committed;
    auto state = error.sqlstate;
    if (is_open && !state.empty()) {
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
    throw call_failure{fault::connection, std::move(state), known, problem};
}

// A refusal is an answer here, and does not cost the session.
rows connection::ask(std::string const& sql) {
    auto const deadline = steady_clock::now() + context_.call_timeout + watchdog_margin;
    session_->clear_error();
    try {
        watchdog::guard const guard{context_.dog, session_->socket, deadline};
        pqxx::nontransaction tx{session_->link};
        return table_of(tx.exec(sql));
    } catch (std::exception const& e) {
        auto problem = scrubbed(e.what());
        auto state = session_->newest_error().sqlstate;
        if (session_->link.is_open() && !state.empty()) {
            throw call_failure{fault::element, std::move(state), true, problem};
        }
        drop();
        throw call_failure{fault::connection, std::move(state), true, problem};
    }
}

judgement connection::judge(std::string_view binary_version) {
    auto const began = steady_clock::now();
    bool made = false;
    struct note {
        connection& c;
        steady_clock::time_point began;
        bool& made;
        ~note() { c.context_.watcher.statement("judge", steady_clock::now() - began, made); }
    } const noted{*this, began, made};
    {
        watchdog::guard const guard{context_.dog, session_->socket,
                                    began + context_.call_timeout + watchdog_margin};
        session_->clear_error();
        try {
            session_->check_mark();
        } catch (std::exception const& e) {
            // Another's session, or one that broke: nothing that was sent there is in doubt.
            auto const problem = scrubbed(e.what());
            auto state = session_->newest_error().sqlstate;
            if (state.empty() && session_->link.is_open()) {
                context_.board.failed(profile_.board_number, problem, true, true);
            }
            drop();
            throw call_failure{fault::connection, std::move(state), true, problem};
        }
    }
    auto const verdict = db::judge([this](std::string const& sql) { return ask(sql); },
                                   session_->self, binary_version, true);
    made = true;
    return verdict;
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
