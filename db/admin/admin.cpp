#include "db/admin/admin.hpp"

#include "base/text.hpp"
#include "db/session/command_session.hpp"
#include "db/session/sqlstate.hpp"
#include "db/store/arrays.hpp"

#include <map>
#include <utility>

namespace presenced::db {

namespace {

// Columns may be written by hand, and then hold what presenced never writes: infinity.
std::string rfc3339(std::string const& column) {
    return "coalesce(CASE WHEN isfinite(" + column + ") THEN to_char(" + column +
           " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') ELSE " + column +
           "::text END, '')";
}

// Of a timestamp in the past; a clock that was stepped back makes no negative ages. NULL for
// infinity.
std::string age(std::string const& column) {
    return "CASE WHEN isfinite(" + column + ") THEN greatest(0, (extract(epoch FROM " +
           "clock_timestamp() - " + column + ") * 1000)::bigint) END";
}

std::string agent_columns() {
    return "a.id, a.owner_id, a.name, a.routing_active, " + rfc3339("a.routing_changed_at") + ", " +
           rfc3339("a.created_at");
}

std::string token_columns() {
    return "t.id, t.owner_id, t.role, CASE WHEN t.agents IS NOT NULL THEN "
           "ARRAY(SELECT DISTINCT a FROM unnest(t.agents) AS a ORDER BY a)::text END, t.label, " +
           rfc3339("t.created_at") + ", " + rfc3339("t.expires_at") + ", " +
           rfc3339("t.revoked_at") +
           ", CASE WHEN t.revoked_at IS NOT NULL THEN 'revoked' "
           "WHEN t.expires_at <= clock_timestamp() THEN 'expired' ELSE 'active' END";
}

// The row's columns are agent_columns() and the number of live sessions.
agent_row to_agent(pqxx::row const& line) {
    return {line[0].as<std::int64_t>(),
            line[1].as<std::int64_t>(),
            line[2].c_str(),
            line[3].as<bool>(),
            line[4].c_str(),
            line[5].c_str(),
            line[6].as<std::size_t>()};
}

agent_list to_agents(pqxx::field const& field) {
    if (field.is_null()) {
        return nullptr;
    }
    std::vector<agent_id> agents;
    for (auto const& element : parse_array(field.c_str())) {
        agents.push_back(std::stoll(element));
    }
    return std::make_shared<std::vector<agent_id> const>(std::move(agents));
}

token_row to_token(pqxx::row const& line) {
    return {line[0].as<std::int64_t>(),
            line[1].as<std::int64_t>(),
            line[2].c_str(),
            to_agents(line[3]),
            line[4].c_str(),
            line[5].c_str(),
            line[6].c_str(),
            line[7].c_str(),
            line[8].c_str()};
}

std::vector<agent_row> read_agents(pqxx::work& tx, std::string const& where) {
    std::vector<agent_row> found;
    for (auto const& line :
         tx.exec("SELECT " + agent_columns() +
                 ", coalesce(l.sessions, 0) FROM agents a "
                 "LEFT JOIN (SELECT agent_id, count(*) AS sessions FROM live_agent_subscriptions "
                 "           GROUP BY agent_id) l ON l.agent_id = a.id " +
                 where + " ORDER BY a.id")) {
        found.push_back(to_agent(line));
    }
    return found;
}

// Rows bear a node's name and no boot. A boot that is gone renews nothing, so what was seen since
// the next one of its name started is the next one's: `writes_from` to `writes_until`. One that is
// gone while an older one runs (`outlived`) has no rows any more. Of two that run at a time
// (`shares_name`) nobody can tell.
std::string boots() {
    return "WITH seen AS ("
           "  SELECT n.node, n.boot_id, n.version, n.started_at, n.ticked_at, "
           "         coalesce(n.ticked_at <= clock_timestamp() - c.stale_after, false) AS gone "
           "  FROM nodes n LEFT JOIN presence_clock c ON true), "
           "dated AS ("
           "  SELECT s.*, s.gone AND coalesce(bool_or(NOT s.gone) OVER ("
           "      PARTITION BY s.node ORDER BY s.started_at, s.boot_id "
           "      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false) AS outlived "
           "  FROM seen s), "
           "boots AS MATERIALIZED ("
           "  SELECT d.*, "
           "         CASE WHEN d.outlived THEN 'infinity' WHEN row_number() OVER name = 1 "
           "             THEN '-infinity' ELSE d.started_at END AS writes_from, "
           "         coalesce(lead(d.started_at) OVER name, 'infinity') AS writes_until "
           "  FROM dated d "
           "  WINDOW name AS (PARTITION BY d.node, d.outlived ORDER BY d.started_at, d.boot_id)), "
           "named AS MATERIALIZED ("
           "  SELECT b.*, NOT b.gone AND EXISTS ("
           "      SELECT FROM boots o WHERE o.node = b.node AND o.boot_id <> b.boot_id "
           "      AND NOT o.gone AND o.ticked_at >= b.started_at AND b.ticked_at >= o.started_at) "
           "      AS shares_name "
           "  FROM boots b) ";
}

std::optional<std::chrono::milliseconds> to_age(pqxx::field const& field) {
    if (field.is_null()) {
        return std::nullopt;
    }
    return std::chrono::milliseconds{field.as<std::int64_t>()};
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

namespace {

// Columns that have their defaults are not named: an app may have no right to them.
std::string insert_of(pqxx::work& tx, token_order const& order) {
    std::string columns = "token_sha256, owner_id, label";
    auto values = "decode('" + base::hex(order.digest) + "', 'hex'), " +
                  std::to_string(order.owner) + ", " + tx.quote(order.label);
    if (order.expires_in) {
        columns += ", expires_at";
        values += ", clock_timestamp() + interval '1 second' * " +
                  std::to_string(order.expires_in->count());
    }
    if (order.role != token_role::session) {
        columns += ", role";
        values += ", " + tx.quote(std::string{to_string(order.role)});
    }
    if (!order.agents.empty()) {
        array_literal agents;
        for (auto const agent : order.agents) {
            agents.add(agent);
        }
        columns += ", agents";
        values += ", " + tx.quote(agents.take()) + "::bigint[]";
    }
    return "INSERT INTO access_tokens AS t (" + columns + ") VALUES (" + values + ") RETURNING " +
           token_columns();
}

// Why a role above peer was denied: PostgreSQL's own words, or those of the trigger
// access_tokens_roles, name no cure that would do. Nothing when it is something else.
std::optional<std::string> why_role_denied(command_session& session, token_role role) {
    auto const facts = session.ask(
        "SELECT current_user, o.rolname, pg_has_role(current_user, c.relowner, 'USAGE') "
        "FROM pg_class c JOIN pg_roles o ON o.oid = c.relowner "
        "WHERE c.oid = 'access_tokens'::regclass");
    if (facts.empty() || facts.front().at(2) == "t") {
        return std::nullopt;
    }
    auto const& owner = facts.front().at(1).value();
    return "the role " + facts.front().at(0).value() + " may not issue a token of role " +
           std::string{to_string(role)} +
           ": tokens above peer are issued by the owner of the table access_tokens alone. Connect "
           "as " +
           owner + " (DATABASE_URL), or issue a token of role session or peer";
}

} // namespace

token_row admin::issue_token(token_order const& order) {
    try {
        return session_->transaction(
            [&](pqxx::work& tx) { return to_token(tx.exec(insert_of(tx, order))[0]); });
    } catch (schema_error const&) {
        if (order.role > token_role::peer &&
            session_->newest_error().sqlstate == sqlstate::insufficient_privilege) {
            if (auto const why = why_role_denied(*session_, order.role)) {
                throw schema_error{*why};
            }
        }
        throw;
    }
}

std::vector<token_row> admin::tokens() {
    return session_->transaction([](pqxx::work& tx) {
        std::vector<token_row> found;
        for (auto const& line :
             tx.exec("SELECT " + token_columns() + " FROM access_tokens t ORDER BY t.id")) {
            found.push_back(to_token(line));
        }
        return found;
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
        for (auto const& line : tx.exec(boots() + "SELECT b.node, b.boot_id, b.version, " +
                                        age("b.started_at") + ", " + age("b.ticked_at") +
                                        ", b.gone, b.shares_name FROM named b "
                                        "ORDER BY b.node, b.ticked_at DESC, b.started_at DESC")) {
            report.nodes.push_back({line[0].c_str(), line[1].c_str(), line[2].c_str(),
                                    to_age(line[3]), to_age(line[4]), 0, line[5].as<bool>(),
                                    line[6].as<bool>()});
        }
        std::map<std::pair<std::string, std::string>, std::size_t> counts;
        for (auto const& line : tx.exec(
                 boots() +
                 "SELECT s.agent_id, coalesce(s.session_id, ''), s.node, "
                 "CASE WHEN b.shares_name THEN '' ELSE coalesce(b.boot_id, '') END, " +
                 age("s.created_at") + ", " + age("s.last_seen_at") +
                 // A crash loop leaves boots by the thousand; all but a few are older than any
                 // row.
                 " FROM live_agent_subscriptions s LEFT JOIN (SELECT * FROM named "
                 "WHERE writes_until > (SELECT min(last_seen_at) FROM live_agent_subscriptions)) "
                 "b ON b.node = s.node "
                 "AND s.last_seen_at >= b.writes_from AND s.last_seen_at < b.writes_until "
                 "ORDER BY s.agent_id, s.created_at, s.token")) {
            report.sessions.push_back({line[0].as<std::int64_t>(), line[1].c_str(), line[2].c_str(),
                                       line[3].c_str(), to_age(line[4]), to_age(line[5])});
            ++counts[{line[2].c_str(), line[3].c_str()}];
        }
        for (auto& n : report.nodes) {
            auto const found = counts.find({n.node, n.boot_id});
            n.sessions = found == counts.end() ? 0 : found->second;
        }
        return report;
    });
}

} // namespace presenced::db
