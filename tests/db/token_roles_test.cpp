#include "db/admin/admin.hpp"
#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

namespace {

// What PostgreSQL says to an app that has all rights on access_tokens; empty when it complies.
std::string said_to_app(world& w, std::string const& statement) {
    w.sql.query("SET ROLE app");
    std::string said;
    try {
        w.sql.query(statement);
    } catch (std::runtime_error const& e) {
        said = e.what();
    }
    w.sql.query("RESET ROLE");
    return said;
}

} // namespace

TEST_CASE("only the owner of the table writes tokens above peer", "[db][identity]") {
    world w;
    w.sql.query("DO $$ BEGIN CREATE ROLE app; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
                "GRANT ALL ON access_tokens TO app;"
                "INSERT INTO access_tokens (id, token_sha256, owner_id, role, expires_at) "
                "VALUES (500, sha256('root'), 1, 'admin', now() + interval '1 day')");
    auto const denied = [&](std::string const& statement) {
        return said_to_app(w, statement).find("may not write an access token of role") !=
               std::string::npos;
    };
    auto const insert = [](std::string const& role) {
        return "INSERT INTO access_tokens (token_sha256, owner_id, role) VALUES (sha256('" + role +
               "'), 1, '" + role + "')";
    };
    CHECK(said_to_app(w, insert("session")).empty());
    CHECK(said_to_app(w, insert("peer")).empty());
    CHECK(denied(insert("app")));
    CHECK(denied(insert("admin")));
    CHECK(denied("UPDATE access_tokens SET role = 'app' WHERE role = 'peer'"));
    // An admin's token may be ended, and not be prolonged, revived or taken over.
    CHECK(denied("UPDATE access_tokens SET token_sha256 = sha256('mine') WHERE id = 500"));
    CHECK(denied("UPDATE access_tokens SET owner_id = 2 WHERE id = 500"));
    CHECK(denied("UPDATE access_tokens SET agents = '{1}' WHERE id = 500"));
    CHECK(denied("UPDATE access_tokens SET expires_at = NULL WHERE id = 500"));
    CHECK(said_to_app(w, "UPDATE access_tokens SET label = 'x' WHERE id = 500").empty());
    CHECK(said_to_app(w, "UPDATE access_tokens SET revoked_at = now() WHERE id = 500").empty());
    CHECK(denied("UPDATE access_tokens SET revoked_at = NULL WHERE id = 500"));
    CHECK(w.sql.value("SELECT role FROM access_tokens WHERE id = 500") == "admin");
    CHECK_THROWS(w.sql.query(insert("root")));
    CHECK(w.sql.value("INSERT INTO access_tokens (token_sha256, owner_id) "
                      "VALUES (sha256('z'), 1) RETURNING role") == "session");
}

TEST_CASE("who may not issue a token of a role above peer is told who may", "[db][identity]") {
    world w;
    // The role of the server may not write tokens at all.
    db::admin desk{as_server(w.conninfo)};
    auto const said_of = [&desk](db::token_role role) -> std::string {
        try {
            desk.issue_token({.owner = 1, .role = role});
        } catch (db::schema_error const& e) {
            return e.what();
        }
        return {};
    };
    auto const cure = "Connect as " + w.sql.value("SELECT current_user") +
                      " (DATABASE_URL), or issue a token of role session or peer";
    for (auto const role : {db::token_role::app, db::token_role::admin}) {
        auto const said = said_of(role);
        CAPTURE(said);
        CHECK(said.starts_with("the role presenced_server may not issue a token of role " +
                               std::string{to_string(role)} + ":"));
        CHECK(said.ends_with(cure));
    }
    CHECK(said_of(db::token_role::peer).find("permission denied") != std::string::npos);
    // An app may, but for the trigger.
    w.sql.query("GRANT INSERT, SELECT ON access_tokens TO presenced_server");
    CHECK(said_of(db::token_role::app).ends_with(cure));
    CHECK(desk.issue_token({.owner = 1, .role = db::token_role::peer, .agents = {8, 7}}).role ==
          "peer");
    CHECK(w.sql.value("SELECT string_agg(role || agents::text, ' ') FROM access_tokens") ==
          "peer{8,7}");
}

TEST_CASE("who may call what: nobody but the server calls what writes", "[db][identity][roles]") {
    world w;
    as_server(w.conninfo);
    // Of PUBLIC, only what readers need.
    CHECK(w.sql.query("SELECT p.proname FROM pg_proc p, aclexplode(coalesce(p.proacl, "
                      "acldefault('f', p.proowner))) g "
                      "WHERE p.pronamespace = 'public'::regnamespace AND g.grantee = 0 "
                      "GROUP BY 1 ORDER BY 1") ==
          std::vector<std::vector<std::string>>{{"presence_known"},
                                                {"presenced_reap_cutoff"},
                                                {"presenced_stale_cutoff"},
                                                {"presenced_vouched"}});
    CHECK(w.sql.value("SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc p, "
                      "aclexplode(p.proacl) g JOIN pg_roles r ON r.oid = g.grantee "
                      "WHERE p.pronamespace = 'public'::regnamespace "
                      "AND r.rolname = 'presenced_server'") ==
          "presence_known presenced_log_in_parts presenced_look presenced_mend_sequences "
          "presenced_notify_flip presenced_queue_agents presenced_reap_cutoff presenced_renew "
          "presenced_stale_cutoff presenced_stale_cutoff presenced_sweep presenced_tick "
          "presenced_transition presenced_trim_log presenced_vouched presenced_walk_flags "
          "presenced_walk_rows");
    // Whatever runs with the rights of its owner finds its tables by itself.
    CHECK(w.sql.number("SELECT count(*) FROM pg_proc p "
                       "WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef AND NOT "
                       "'search_path=public, pg_temp' = ANY (coalesce(p.proconfig, '{}'))") == 0);
}
