// The database away, crashed, read-only or silent: nothing is lost, and all is done afterwards.
#include "tests/db/node.hpp"

#include <csignal>

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("P3: renewals and releases are kept over a restart of the database", "[db][fault]") {
    postgres server;
    auto const conninfo = server.create_database();
    node a{conninfo};
    REQUIRE(a.is_up());
    {
        sql_session sql{conninfo};
        sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(1, 9) g");
    }
    auto const renewed = a.token();
    auto const released = a.token();
    REQUIRE(a.got(a.acquire(3, renewed), lease_outcome::acquired));
    REQUIRE(a.got(a.acquire(4, released), lease_outcome::acquired));
    server.stop(GENERATE(postgres::shutdown::fast, postgres::shutdown::immediate));
    auto const renewal = a.renew(3, renewed);
    auto const release = a.release(4, released);
    auto const acquire = a.acquire(5, a.token());
    CHECK(eventually([&] { return a.store->health().unreachable_for > 300ms; }));
    server.start();
    CHECK(a.got(renewal, lease_outcome::renewed));
    CHECK(a.got(release, lease_outcome::released));
    CHECK(a.got(acquire, lease_outcome::acquired));
    CHECK(eventually([&] { return a.box.backs == 1; }));
    CHECK(a.is_up());
    CHECK(a.store->health().unreachable_for == 0ms);
    sql_session sql{conninfo};
    CHECK(sql.number("SELECT count(*) FROM agent_subscriptions") == 2);
    CHECK(sql.value("SELECT string_agg(id::text, ' ' ORDER BY id) FROM agents "
                    "WHERE routing_active") == "3 5");
}

TEST_CASE("abandon: unsent while the database is away, it is answered at once", "[db][abandon]") {
    postgres server;
    auto const conninfo = server.create_database();
    node a{conninfo};
    REQUIRE(a.is_up());
    {
        sql_session sql{conninfo};
        sql.query("INSERT INTO agents (id, owner_id) VALUES (3, 1)");
    }
    server.stop();
    auto const token = a.token();
    auto const key = a.acquire(3, token);
    auto const kept = a.acquire(3, a.token());
    a.store->abandon(3, token);
    CHECK(a.got(key, lease_outcome::abandoned, 2s));
    REQUIRE(eventually([&] { return !a.store->health().reachable; }));
    CHECK_FALSE(a.store->health().problem.empty());
    CHECK(eventually([&] { return !a.store->health().writable; }));

    // More than that many acquires are not worth waiting for.
    for (int i = 0; i < 65'535; ++i) {
        a.acquire(999, a.token());
    }
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::unavailable, 2s));
    server.start();
    CHECK(a.got(kept, lease_outcome::acquired));
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::refused) == 65'535; }, 30s));
    CHECK(a.is_up());
}

TEST_CASE("a backend killed by the system restarts the server, and nothing is lost",
          "[db][fault]") {
    postgres server;
    auto const conninfo = server.create_database();
    node a{conninfo};
    REQUIRE(a.is_up());
    pid_t victim = 0;
    {
        sql_session sql{conninfo};
        sql.query("INSERT INTO agents (id, owner_id) SELECT g, 1 FROM generate_series(1, 9) g");
        victim = static_cast<pid_t>(sql.number("SELECT pid FROM pg_stat_activity "
                                               "WHERE application_name = 'presenced' LIMIT 1"));
    }
    for (int i = 0; i < 500; ++i) {
        a.acquire(i % 9 + 1, a.token());
    }
    postgres::signal(victim, SIGKILL);
    for (int i = 0; i < 500; ++i) {
        a.acquire(i % 9 + 1, a.token());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 1'000; }, 20s));
    sql_session sql{conninfo};
    CHECK(sql.number("SELECT count(*) FROM agent_subscriptions") == 1'000);
    CHECK(a.box.answered() == 1'000);
}

TEST_CASE("a read-only server: nothing is refused, and all is done once it is writable",
          "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    auto const database = w.sql.value("SELECT current_database()");
    w.sql.query("ALTER DATABASE " + database + " SET default_transaction_read_only = on");
    w.terminate_all();
    auto const acquire = a.acquire(5, a.token());
    auto const unwanted_token = a.token();
    auto const unwanted = a.acquire(5, unwanted_token);
    auto const release = a.release(3, token);
    REQUIRE(eventually([&] { return !a.store->health().writable; }));
    CHECK(eventually([&] { return a.store->health().problem == "the server is read-only"; }));
    CHECK(eventually([&] { return a.store->health().reachable; }));
    a.store->abandon(5, unwanted_token);
    CHECK(a.box.outcomes(acquire).empty());
    // Look-ups go on: they only read.
    auto const lookup = a.authenticate(9);
    CHECK(eventually([&] { return a.box.tokens().contains(lookup); }));
    w.sql.query("SET default_transaction_read_only = off");
    w.sql.query("ALTER DATABASE " + database + " RESET default_transaction_read_only");
    CHECK(a.got(acquire, lease_outcome::acquired));
    CHECK(a.got(release, lease_outcome::released));
    CHECK(a.got(unwanted, lease_outcome::abandoned));
    CHECK(a.is_up());
    CHECK(w.rows() == 1);
}

TEST_CASE("a connection that hangs is given up and replaced", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    // Every backend of the node stops; a hung proxy looks the same from here.
    // But between two statements: one that was stopped with a lock would hold up all the others.
    auto const frozen = w.backends("true");
    REQUIRE(frozen.size() == 6);
    REQUIRE(eventually([&] {
        for (auto const pid : frozen) {
            postgres::signal(pid, SIGSTOP);
        }
        if (w.backends("state <> 'idle'").empty()) {
            return true;
        }
        for (auto const pid : frozen) {
            postgres::signal(pid, SIGCONT);
        }
        return false;
    }));
    // While they are stopped, which no time-out of PostgreSQL's ends.
    auto const key = a.acquire(5, a.token());
    auto const lookup = a.authenticate(9);
    CHECK(a.got(key, lease_outcome::acquired, 20s));
    CHECK(eventually([&] { return a.box.tokens().contains(lookup); }));
    // The lanes that had nothing to do notice last.
    CHECK(eventually([&] { return a.is_up(); }));
    for (auto const pid : frozen) {
        postgres::signal(pid, SIGCONT);
    }
    // The frozen ones had been told to end, and what they were sent is late.
    CHECK(eventually([&] { return w.backends("true").size() == 6; }));
    CHECK(w.rows() == 2);
}

namespace {

bool is_in_trouble(node const& a) {
    auto const h = a.store->health();
    return !h.reachable || !h.problem.empty() || !h.unfit.empty();
}

} // namespace

TEST_CASE("a lane whose failed subscribe was given up is healthy again without a further request",
          "[db][fault][idle_lane]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    w.add_trigger("INSERT", "true", "RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'");
    auto const token = a.token();
    auto const key = a.acquire(3, token);
    REQUIRE(eventually([&] { return is_in_trouble(a); }));
    a.store->abandon(3, token);
    REQUIRE(a.got(key, lease_outcome::abandoned));
    w.drop_trigger();
    CHECK(eventually([&] { return !is_in_trouble(a); }));
    CHECK(a.is_up());
}

TEST_CASE("the busy lane is healthy again without a further request, too",
          "[db][fault][idle_lane]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    w.add_trigger("INSERT", "true", "RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'");
    auto const token = a.token();
    std::uint64_t key = 0;
    {
        sql_session holder{w.conninfo};
        holder.query("BEGIN");
        holder.query("SELECT FROM agents WHERE id = 3 FOR UPDATE");
        key = a.acquire(3, token);
        REQUIRE(eventually([&] { return a.failures.taken_by("busy") > 0; }));
        holder.query("COMMIT");
    }
    REQUIRE(eventually([&] { return is_in_trouble(a); }));
    a.store->abandon(3, token);
    REQUIRE(a.got(key, lease_outcome::abandoned));
    w.drop_trigger();
    CHECK(eventually([&] { return !is_in_trouble(a); }));
    CHECK(a.is_up());
}
