#include "db/admin.hpp"

#include "db/command_session.hpp"

#include <utility>

namespace presenced::db {

namespace {

std::string rfc3339(std::string const& column) {
    return "coalesce(to_char(" + column +
           " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '')";
}

// Of a timestamp in the past; a clock that was stepped back makes no negative ages.
std::string age(std::string const& column) {
    return "greatest(0, (extract(epoch FROM clock_timestamp() - " + column + ") * 1000)::bigint)";
}

std::string agent_columns() {
    return "a.id, a.owner_id, a.name, a.routing_active, " + rfc3339("a.routing_changed_at") + ", " +
           rfc3339("a.created_at");
}

std::string token_columns() {
    return "t.id, t.owner_id, t.label, " + rfc3339("t.created_at") + ", " +
           rfc3339("t.expires_at") + ", " + rfc3339("t.revoked_at") +
           ", CASE WHEN t.revoked_at IS NOT NULL THEN 'revoked' "
           "WHEN t.expires_at <= clock_timestamp() THEN 'expired' ELSE 'active' END";
}

// The row's columns are agent_columns() and the number of live sessions.
agent_row to_agent(pqxx::row const& row) {
    return {row[0].as<std::int64_t>(),
            row[1].as<std::int64_t>(),
            row[2].c_str(),
            row[3].as<bool>(),
            row[4].c_str(),
            row[5].c_str(),
            row[6].as<std::size_t>()};
}

token_row to_token(pqxx::row const& row) {
    return {row[0].as<std::int64_t>(),
            row[1].as<std::int64_t>(),
            row[2].c_str(),
            row[3].c_str(),
            row[4].c_str(),
            row[5].c_str(),
            row[6].c_str()};
}

std::vector<agent_row> read_agents(pqxx::work& tx, std::string const& where) {
    std::vector<agent_row> rows;
    for (auto const& row :
         tx.exec("SELECT " + agent_columns() +
                 ", coalesce(l.sessions, 0) FROM agents a "
                 "LEFT JOIN (SELECT agent_id, count(*) AS sessions FROM live_agent_subscriptions "
                 "           GROUP BY agent_id) l ON l.agent_id = a.id " +
                 where + " ORDER BY a.id")) {
        rows.push_back(to_agent(row));
    }
    return rows;
}

std::chrono::milliseconds to_duration(pqxx::field const& field) {
    return std::chrono::milliseconds{field.as<std::int64_t>()};
}

std::string hex(token_digest const& digest) {
    constexpr auto digits = "0123456789abcdef";
    std::string text;
    for (auto const byte : digest) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

} // namespace

struct admin::session : command_session {
    using command_session::command_session;
};

admin::admin(std::string const& conninfo)
    : session_{std::make_unique<session>(conninfo)} {
    session_->transaction([](pqxx::work& tx) { check_migrations(tx, built_version()); });
}

admin::~admin() = default;

agent_row admin::create_agent(owner_id owner, std::string const& name) {
    return session_->transaction([&](pqxx::work& tx) {
        auto const r =
            tx.exec("INSERT INTO agents AS a (owner_id, name) VALUES (" + std::to_string(owner) +
                    ", " + tx.quote(name) + ") RETURNING " + agent_columns() + ", 0");
        return to_agent(r[0]);
    });
}

std::vector<agent_row> admin::agents() {
    return session_->transaction([](pqxx::work& tx) { return read_agents(tx, ""); });
}

token_row admin::issue_token(owner_id owner, std::string const& label, token_digest const& digest,
                             std::optional<std::chrono::seconds> expires_in) {
    return session_->transaction([&](pqxx::work& tx) {
        auto const expires = expires_in ? "clock_timestamp() + interval '1 second' * " +
                                              std::to_string(expires_in->count())
                                        : std::string{"NULL"};
        auto const r =
            tx.exec("INSERT INTO access_tokens AS t (token_sha256, owner_id, label, expires_at) "
                    "VALUES (decode('" +
                    hex(digest) + "', 'hex'), " + std::to_string(owner) + ", " + tx.quote(label) +
                    ", " + expires + ") RETURNING " + token_columns());
        return to_token(r[0]);
    });
}

std::vector<token_row> admin::tokens() {
    return session_->transaction([](pqxx::work& tx) {
        std::vector<token_row> rows;
        for (auto const& row :
             tx.exec("SELECT " + token_columns() + " FROM access_tokens t ORDER BY t.id")) {
            rows.push_back(to_token(row));
        }
        return rows;
    });
}

std::optional<token_row> admin::revoke_token(token_id id) {
    return session_->transaction([&](pqxx::work& tx) -> std::optional<token_row> {
        auto const r = tx.exec("UPDATE access_tokens t "
                               "SET revoked_at = coalesce(t.revoked_at, clock_timestamp()) "
                               "WHERE t.id = " +
                               std::to_string(id) + " RETURNING " + token_columns());
        return r.empty() ? std::nullopt : std::optional{to_token(r[0])};
    });
}

status_report admin::status() {
    return session_->transaction([](pqxx::work& tx) {
        // One snapshot for all of it, or the parts contradict each other.
        tx.exec("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY");
        status_report report;
        report.presence_known = tx.exec("SELECT presence_known()")[0][0].as<bool>();
        report.agents = read_agents(tx, "WHERE a.routing_active OR l.sessions > 0");
        for (auto const& row :
             tx.exec("SELECT agent_id, coalesce(session_id, ''), node, " + age("created_at") +
                     ", " + age("last_seen_at") +
                     " FROM live_agent_subscriptions ORDER BY agent_id, created_at, token")) {
            report.sessions.push_back({row[0].as<std::int64_t>(), row[1].c_str(), row[2].c_str(),
                                       to_duration(row[3]), to_duration(row[4])});
        }
        for (auto const& row :
             tx.exec("SELECT n.node, n.boot_id, n.version, " + age("n.started_at") + ", " +
                     age("n.ticked_at") +
                     // Rows bear a node's name: they are its newest boot's, whoever made them.
                     ", CASE WHEN row_number() OVER (PARTITION BY n.node "
                     "ORDER BY n.ticked_at DESC, n.started_at DESC) = 1 THEN "
                     "(SELECT count(*) FROM live_agent_subscriptions s WHERE s.node = n.node) "
                     "ELSE 0 END, "
                     "coalesce(n.ticked_at <= clock_timestamp() - c.stale_after, false) "
                     "FROM nodes n LEFT JOIN presence_clock c ON true "
                     "ORDER BY n.node, n.ticked_at DESC, n.started_at DESC")) {
            report.nodes.push_back({row[0].c_str(), row[1].c_str(), row[2].c_str(),
                                    to_duration(row[3]), to_duration(row[4]),
                                    row[5].as<std::size_t>(), row[6].as<bool>()});
        }
        return report;
    });
}

} // namespace presenced::db
