// The part of libpqxx that we use, the same on 6.4 (Debian 12) and 7.10 (Debian 13).
// Included by .cpp files of db/ only; the one place that knows versions.
#pragma once

#include <libpq-fe.h>
#include <pqxx/pqxx>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace presenced::db::port {

// One parameter of a statement, in PostgreSQL's text form; nothing is NULL.
using parameter = std::optional<std::string>;

#if PQXX_VERSION_MAJOR < 7
inline constexpr auto terse = pqxx::connection_base::terse;
#else
inline constexpr auto terse = pqxx::error_verbosity::terse;
#endif

// A connection that libpq has made already.
#if PQXX_VERSION_MAJOR < 7
using any_link = pqxx::connection_base;
class link final : public pqxx::connection_base {
public:
    explicit link(PGconn* raw)
        : connection_base{policy_}
        , policy_{raw} {
        init();
    }
    ~link() { close(); }

private:
    struct policy final : pqxx::connectionpolicy {
        explicit policy(PGconn* made)
            : connectionpolicy{""}
            , raw{made} {}
        handle do_startconnect(handle current) override {
            return current != nullptr ? current : std::exchange(raw, nullptr);
        }
        PGconn* raw;
    };
    policy policy_;
};
inline link adopt(PGconn* raw) {
    return link{raw};
}
#else
using any_link = pqxx::connection;
using link = pqxx::connection;
inline link adopt(PGconn* raw) {
    return pqxx::connection::seize_raw_connection(raw);
}
#endif

// libpqxx 6 replaces a lost connection silently, without its settings and statements.
inline void never_reconnect([[maybe_unused]] any_link& c) {
#if PQXX_VERSION_MAJOR < 7
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    c.inhibit_reactivation(true);
#pragma GCC diagnostic pop
#endif
}

// Prepares on the server now; libpqxx 6 would wait for the first use.
inline void prepare(any_link& c, std::string const& name, std::string const& sql) {
    c.prepare(name, sql);
#if PQXX_VERSION_MAJOR < 7
    c.prepare_now(name);
#endif
}

inline pqxx::result exec_prepared(pqxx::transaction_base& tx, std::string const& name,
                                  std::vector<parameter> const& parameters) {
#if PQXX_VERSION_MAJOR < 7
    std::vector<char const*> texts;
    texts.reserve(parameters.size());
    for (auto const& p : parameters) {
        texts.push_back(p ? p->c_str() : nullptr);
    }
    return tx.exec_prepared(name, pqxx::prepare::make_dynamic_params(texts));
#else
    pqxx::params texts;
    for (auto const& p : parameters) {
        if (p) {
            texts.append(*p);
        } else {
            texts.append();
        }
    }
#if PQXX_VERSION_MAJOR == 7 && PQXX_VERSION_MINOR < 10
    return tx.exec_prepared(name, texts);
#else
    return tx.exec(pqxx::prepped{name}, texts);
#endif
#endif
}

inline std::optional<std::string> text(pqxx::field const& f) {
    if (f.is_null()) {
        return std::nullopt;
    }
    return std::string{f.c_str(), static_cast<std::size_t>(f.size())};
}

} // namespace presenced::db::port
