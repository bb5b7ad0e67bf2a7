#include "db/admin/admin.hpp"
#include "db/admin/schema.hpp"
#include "tests/db/node.hpp"

#include <cctype>

using namespace presenced;
using namespace presenced::tests;

namespace {

bool is_denied(sql_session& sql, std::string const& statement) {
    try {
        sql.query(statement);
    } catch (std::runtime_error const& e) {
        std::string const text = e.what();
        return text.find("permission denied") != std::string::npos ||
               text.find("must be owner") != std::string::npos;
    }
    return false;
}

} // namespace

TEST_CASE("roles: what the operations page says is enough for owner, server and reader",
          "[db][roles]") {
    postgres server; // roles belong to the whole server
    auto const database = [&](std::string const& role) {
        return "host=127.0.0.1 port=" + std::to_string(server.port()) +
               " dbname=presenced user=" + role;
    };
    auto const roles = documented_roles();
    {
        sql_session superuser{server.conninfo("postgres")};
        for (auto const& statement : roles.at(0)) {
            superuser.query(statement);
        }
    }
    CHECK(db::migrate(database("presenced_owner"), 40s).applied.size() == db::migrations().size());
    {
        sql_session owner{database("presenced_owner")};
        for (auto const& statement : roles.at(1)) {
            owner.query(statement);
        }
    }
    db::admin desk{database("presenced_owner")};
    auto const agent = desk.create_agent(1, "demo").id;
    db::token_digest digest{};
    digest[0] = 9;
    auto const issued = desk.issue_token({.owner = 1, .digest = digest});

    CHECK(db::check_schema(database("presenced_server"), "0.1.0").stale_after == 40s);
    presence::settings timings;
    timings.stale_after = 40s;
    timings.sweep = 200ms;
    node a{database("presenced_server"), "a", timings};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(agent, token), lease_outcome::acquired));
    CHECK(a.got(a.renew(agent, token), lease_outcome::renewed));
    auto const key = a.authenticate(9);
    REQUIRE(eventually([&] { return a.box.tokens().contains(key); }));
    CHECK(a.box.tokens().at(key).id == issued.id);
    db::token_grant const issued_grant{issued.id, 1, db::token_role::session, nullptr};
    a.store->check({{issued_grant}, {{agent, 1}}, &a.box});
    REQUIRE(eventually([&] { return a.box.checks().size() == 1; }));
    CHECK(a.box.checks()[0].ended.empty());
    CHECK(a.box.checks()[0].lost.empty());
    CHECK(eventually([&] { return a.store->health().since_sweep < 5s; }));
    CHECK(a.store->health().problem.empty());
    CHECK(a.store->health().unfit.empty());
    CHECK(db::admin{database("presenced_server")}.status().sessions.size() == 1);

    sql_session reader{database("presenced_reader")};
    CHECK(reader.number("SELECT count(*) FROM live_agent_subscriptions") == 1);
    CHECK(reader.value("SELECT presence_known()") == "t");
    CHECK(reader.value("SELECT routing_active FROM agents") == "t");
    for (auto const* const statement :
         {"UPDATE agents SET routing_active = false", "SELECT FROM agents FOR UPDATE",
          "SELECT FROM agent_subscriptions", "DELETE FROM agent_subscriptions",
          "DELETE FROM live_agent_subscriptions", "SELECT FROM access_tokens",
          "UPDATE presence_clock SET stale_after = '1 day'",
          "SELECT presenced_transition('{unsubscribed}', '{1}', '{x}', '{NULL}', '{1}', 'x', "
          "now(), "
          "false)",
          "SELECT presenced_renew('{}', '{}', true, 'x', 'x', 'x', '1 day', '{}')",
          "SELECT presenced_sweep('x', 'x', '0 s', '0 s', 1)", "CREATE TABLE mine ()"}) {
        INFO(statement);
        CHECK(is_denied(reader, statement));
    }
    sql_session serving{database("presenced_server")};
    for (auto const* const statement :
         {"INSERT INTO agents (owner_id) VALUES (1)", "DELETE FROM agents",
          "UPDATE agents SET owner_id = 2", "UPDATE access_tokens SET revoked_at = NULL",
          "DELETE FROM presence_clock", "TRUNCATE agent_subscriptions", "DROP TABLE nodes",
          "UPDATE presenced_migrations SET name = 'x'", "CREATE TABLE mine ()"}) {
        INFO(statement);
        CHECK(is_denied(serving, statement));
    }
    CHECK(a.got(a.release(agent, token), lease_outcome::released));
    // A lost session is ended, and its successor does without any privilege for that.
    {
        sql_session superuser{server.conninfo("postgres")};
        superuser.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'presenced'");
    }
    CHECK(a.got(a.acquire(agent, a.token()), lease_outcome::acquired));
}
