// One ill at a time, planted in a real database: doctor names it with its cure.
#include "db/admin/admin.hpp"
#include "db/admin/doctor.hpp"
#include "tests/db/node.hpp"
#include "tests/support/process.hpp"

#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace presenced;
using namespace presenced::tests;

namespace {

bool has(std::string const& text, std::string const& part) {
    return text.find(part) != text.npos;
}

// "error: what -> cure", a line each.
std::string told(std::string const& conninfo) {
    std::string text;
    for (auto const& p : db::examine(conninfo)) {
        text += (p.how_bad == db::problem::weight::error ? "error: " : "warning: ") + p.what +
                " -> " + p.cure + "\n";
    }
    return text;
}

// Nothing is wrong with it: the plain one's agents have ids that their sequence does not know of.
struct sound_world : world {
    explicit sound_world(presence::settings const& timings = {})
        : world{timings} {
        sql.query("SELECT setval('agents_id_seq', 9)");
        static_cast<void>(as_server(conninfo)); // grants
    }
};

// The ill is planted as superuser, named to the server's role, and gone after the first cure.
void check_cured(world& w, std::string const& ill, std::string const& named) {
    INFO(ill);
    w.sql.query(ill);
    auto const conninfo = as_server(w.conninfo);
    auto const problems = db::examine(conninfo);
    INFO(told(conninfo));
    REQUIRE(problems.size() == 1);
    CHECK(has(problems.front().what, named));
    auto const& cure = problems.front().cure;
    w.sql.query(cure.substr(0, cure.find(", or ")));
    CHECK(told(conninfo).empty());
}

// The real PgBouncer in front of a server.
class pgbouncer {
public:
    pgbouncer(int server_port, std::string const& mode)
        : port_{free_port()} {
        char name[] = "/tmp/presenced-pgbouncer-XXXXXX";
        if (::mkdtemp(name) == nullptr) {
            throw std::runtime_error{"no temporary directory"};
        }
        home_ = name;
        std::filesystem::permissions(home_, std::filesystem::perms{0755});
        std::ofstream{home_ / "pgbouncer.ini"}
            << "[databases]\n* = host=127.0.0.1 port=" << server_port
            << " user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = " << port_
            << "\nauth_type = any\nunix_socket_dir =\npool_mode = " << mode
            << "\ndefault_pool_size = 20\n";
        std::vector<std::string> command{"/usr/sbin/pgbouncer", (home_ / "pgbouncer.ini").string()};
        if (::geteuid() == 0) {
            command.insert(command.begin() + 1, {"-u", "postgres"});
        }
        process_.emplace(command, environment{});
    }
    ~pgbouncer() {
        process_.reset();
        std::error_code ignored; // the directory is in /tmp
        std::filesystem::remove_all(home_, ignored);
    }

    std::string in_front_of(std::string const& conninfo) const {
        return conninfo + " port=" + std::to_string(port_);
    }
    bool answers(std::string const& conninfo) const {
        return eventually([&] {
            try {
                return sql_session{in_front_of(conninfo)}.value("SELECT 1") == "1";
            } catch (std::runtime_error const&) {
                return false;
            }
        });
    }

private:
    int port_;
    std::filesystem::path home_;
    std::optional<process> process_;
};

} // namespace

TEST_CASE("doctor finds nothing wrong with a healthy database, as the server's role and as owner",
          "[db][doctor]") {
    sound_world w;
    CHECK(told(as_server(w.conninfo)).empty());
    CHECK(told(w.conninfo).empty());
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions") == 0);
}

TEST_CASE("doctor names a missing right with the GRANT to run", "[db][doctor]") {
    sound_world w;
    check_cured(w,
                "REVOKE UPDATE (routing_active, routing_changed_at) ON agents FROM "
                "presenced_server",
                "role presenced_server lacks UPDATE (routing_active, routing_changed_at) on "
                "public.agents");
    check_cured(w, "REVOKE DELETE ON agent_subscriptions FROM presenced_server",
                "lacks DELETE on public.agent_subscriptions");
    check_cured(w, "REVOKE SELECT ON presence_clock FROM presenced_server",
                "lacks SELECT (one, stale_after, ticked_at, judge_until, amnesty_until, "
                "flip_every, flip_burst) on public.presence_clock");
    check_cured(w, "REVOKE SELECT ON access_tokens FROM presenced_server", "public.access_tokens");
    check_cured(w,
                "REVOKE SELECT ON agents FROM presenced_server;"
                "GRANT SELECT (id, owner_id) ON agents TO presenced_server",
                "lacks SELECT (routing_active, flips_paid_until) on public.agents");
    check_cured(w,
                "REVOKE SELECT, UPDATE ON sweep_state FROM presenced_server;"
                "GRANT UPDATE ON sweep_state TO presenced_server",
                "public.sweep_state");
    check_cured(w, "REVOKE DELETE ON sweep_queue FROM presenced_server",
                "lacks DELETE on public.sweep_queue");
}

TEST_CASE("the rights that doctor asks for are all that a node needs", "[db][doctor]") {
    sound_world w{quick()};
    w.sql.query("DROP ROLE IF EXISTS bare; CREATE ROLE bare LOGIN");
    auto bare = w.conninfo;
    bare.replace(bare.find("user=postgres "), 14, "user=bare ");
    // Some of it is asked for only once the rest is there.
    for (auto problems = db::examine(bare); !problems.empty(); problems = db::examine(bare)) {
        for (auto const& p : problems) {
            REQUIRE(p.cure.starts_with("GRANT "));
            w.sql.query(p.cure);
        }
    }
    {
        node a{bare, "a", quick()};
        auto const token = a.token();
        REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
        CHECK(a.got(a.renew(7, token), lease_outcome::renewed));
        CHECK(a.got(a.release(7, token), lease_outcome::released));
        // Something for each part of the sweep.
        w.sql.query("UPDATE agents SET routing_active = true WHERE id = 3;"
                    "INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
                    "VALUES (4, 'ahead', now() + interval '1 day');"
                    "INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
                    "VALUES (5, 'old', now() - interval '1 day');"
                    "INSERT INTO nodes (node, boot_id, ticked_at) "
                    "VALUES ('n', 'old', now() - interval '2 days'), "
                    "('n', 'ahead', now() + interval '1 day');"
                    "INSERT INTO routing_transitions (agent_id, active, reason, at) "
                    "VALUES (1, true, 'subscribed', now() - interval '1 year')");
        CHECK(eventually([&] { return !w.flag(3) && w.rows() == 0; }));
        CHECK(eventually([&] {
            return w.sql.number("SELECT count(*) FROM nodes WHERE boot_id = 'old'") == 0 &&
                   w.sql.number("SELECT count(*) FROM routing_transitions "
                                "WHERE at < now() - interval '1 day'") == 0;
        }));
        for (auto const* statement : {"transition", "renew", "sweep", "judge"}) {
            INFO(statement);
            CHECK(a.failures.of(statement) == 0);
        }
    }
    w.sql.query("DROP OWNED BY bare; DROP ROLE bare");
}

TEST_CASE("doctor names a function that the role may not execute", "[db][doctor]") {
    sound_world w;
    auto const revoke = [&](std::string const& function) {
        return "REVOKE EXECUTE ON FUNCTION " +
               w.sql.value("SELECT oid::regprocedure FROM pg_proc WHERE proname = '" + function +
                           "' LIMIT 1") +
               " FROM PUBLIC, presenced_server";
    };
    check_cured(w, revoke("presenced_sweep"), "may not execute public.presenced_sweep(");
    check_cured(w, revoke("presenced_vouched"), "may not execute public.presenced_vouched(");
    check_cured(w, "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC", "pg_notify");
}

TEST_CASE("doctor names row level security on each table that a node reads or writes",
          "[db][doctor]") {
    sound_world w;
    for (std::string const table :
         {"access_tokens", "agents", "agent_subscriptions", "nodes", "routing_transitions",
          "presence_clock", "sweep_state", "sweep_queue"}) {
        check_cured(w, "ALTER TABLE " + table + " ENABLE ROW LEVEL SECURITY",
                    "row level security on public." + table +
                        " hides rows from role "
                        "presenced_server");
    }
}

TEST_CASE("doctor names a view in place of a table, and a table that is not there",
          "[db][doctor]") {
    sound_world w;
    w.sql.query("ALTER TABLE access_tokens RENAME TO kept");
    CHECK(has(told(as_server(w.conninfo)), "error: table public.access_tokens is not there"));
    w.sql.query("CREATE VIEW access_tokens AS SELECT * FROM kept WHERE false");
    CHECK(has(told(as_server(w.conninfo)), "error: public.access_tokens is not a table"));
}

TEST_CASE("doctor names a namesake that stands before presenced's table in search_path",
          "[db][doctor]") {
    auto const database = postgres::shared().create_database(false);
    sql_session sql{database};
    sql.query("CREATE SCHEMA presence");
    auto const at_home = database + " options='-c search_path=presence'";
    db::migrate(at_home, std::nullopt);
    auto const behind = database + " options='-c search_path=public,presence'";
    CHECK(told(behind).empty());
    sql.query("CREATE TABLE public.agents (id bigint)");
    CHECK(has(told(behind), "warning: public.agents is not presenced's"));
    CHECK(told(at_home).empty());
    auto const elsewhere = told(database + " options='-c search_path=public'");
    CHECK(has(elsewhere, "error: search_path is public, and presenced's tables are in schema "
                         "presence"));
}

TEST_CASE("doctor names a sequence behind its rows, whether it may read the sequence or not",
          "[db][doctor]") {
    sound_world w;
    w.sql.query("INSERT INTO routing_transitions (agent_id, active, reason) "
                "SELECT 1, true, 'subscribed' FROM generate_series(1, 5);"
                "ALTER SEQUENCE routing_transitions_id_seq RESTART");
    CHECK(has(told(w.conninfo), "error: sequence public.routing_transitions_id_seq is behind"));
    CHECK(has(told(as_server(w.conninfo)),
              "error: the sequence of public.routing_transitions is behind its rows"));
    auto const report = db::migrate(w.conninfo, std::nullopt);
    CHECK(report.mended == std::vector<std::string>{"of public.routing_transitions"});
    CHECK(told(w.conninfo).empty());
    CHECK(told(as_server(w.conninfo)).empty());
    CHECK(w.sql.number("INSERT INTO routing_transitions (agent_id, active, reason) "
                       "VALUES (1, false, 'expired') RETURNING id") > 5);
    // A gap is none of its business.
    w.sql.query("ALTER SEQUENCE routing_transitions_id_seq RESTART WITH 1000");
    CHECK(told(w.conninfo).empty());
}

TEST_CASE("doctor names a role that can neither see nor end its sessions", "[db][doctor]") {
    sound_world w;
    check_cured(w, "REVOKE EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) FROM PUBLIC",
                "role presenced_server may not end its own sessions");
    check_cured(w, "REVOKE SELECT ON pg_stat_activity FROM PUBLIC",
                "role presenced_server cannot see its own sessions");
}

TEST_CASE("a database that is not UTF8 is named, and not migrated to begin with", "[db][doctor]") {
    auto const at = postgres::shared().create_database();
    sql_session sql{at};
    sql.query("CREATE DATABASE latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' "
              "TEMPLATE template0");
    auto const latin1 = postgres::shared().conninfo("latin1");
    std::string said;
    try {
        db::migrate(latin1, std::nullopt);
    } catch (db::schema_error const& e) {
        said = e.what();
    }
    CHECK(has(said, "has the encoding LATIN1, and presenced needs UTF8"));
    // One that is there already goes on.
    sql_session there{latin1};
    there.query("CREATE TABLE presenced_migrations (number integer PRIMARY KEY, name text, "
                "oldest_binary text)");
    for (auto const& m : db::migrations()) {
        there.query(std::string{m.sql});
        there.query("INSERT INTO presenced_migrations VALUES (" + std::to_string(m.number) + ", '" +
                    std::string{m.name} + "', '" + std::string{m.oldest_binary} + "')");
    }
    CHECK(has(told(latin1), "warning: the database's encoding is LATIN1"));
}

TEST_CASE("doctor names a setting that only a superuser may change", "[db][doctor]") {
    sound_world w;
    CHECK(has(told(w.conninfo + " options='-c session_replication_role=replica'"),
              "error: session_replication_role is replica"));
}

TEST_CASE("doctor and a node name a pooler in the wrong mode, and take one in session mode",
          "[db][doctor]") {
    sound_world w;
    auto const port = std::stoi(w.sql.value("SELECT current_setting('port')"));
    for (auto const* mode : {"transaction", "statement"}) {
        INFO(mode);
        pgbouncer pooler{port, mode};
        REQUIRE(pooler.answers(w.conninfo));
        CHECK(has(told(pooler.in_front_of(w.conninfo)), "pool_mode = session"));
        node a{pooler.in_front_of(w.conninfo)};
        CHECK(eventually([&] { return has(a.store->health().problem, "pool_mode = session"); }));
    }
    pgbouncer pooler{port, "session"};
    REQUIRE(pooler.answers(w.conninfo));
    CHECK(told(pooler.in_front_of(w.conninfo)).empty());
    node a{pooler.in_front_of(w.conninfo)};
    CHECK(a.is_up());
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
}
