#include "tests/db/node.hpp"

#include <atomic>
#include <csignal>
#include <thread>

using namespace presenced;
using namespace presenced::tests;

namespace {

std::string quoted(lease_token const& token) {
    return "'" + std::string{token.view()} + "'";
}

// While `push` asks for them, these agents are held, so that what is asked for gathers in the busy
// lane and leaves it together.
template <class Push>
void holding_agents(world& w, node& a, std::string const& agents, Push push) {
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT FROM agents WHERE id IN (" + agents + ") FOR UPDATE");
    auto const before = a.box.answered();
    push();
    auto const busy = [&] {
        std::size_t depth = 0;
        for (auto const& q : a.store->health().queues) {
            depth += q.lane == std::string_view{"transition"} ? q.depth : 0;
        }
        return depth == 0;
    };
    REQUIRE(eventually(busy));
    REQUIRE(a.box.answered() == before);
    holder.query("COMMIT");
}

} // namespace

TEST_CASE("P9: an agent held by somebody else delays its own subscribes only", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agents WHERE id = 3 FOR UPDATE");
    auto const stuck = a.acquire(3, a.token());
    auto const taken_back = a.token();
    auto const unwanted = a.acquire(3, taken_back);
    for (int i = 0; i < 60; ++i) {
        REQUIRE(a.got(a.acquire(i % 2 == 0 ? 5 : 6, a.token()), lease_outcome::acquired));
    }
    CHECK(a.box.outcomes(stuck).empty());
    // The lanes passed over the two that are stuck, once, and waited for nobody.
    CHECK(a.failures.taken_by("transition") == 62);
    // Nothing of it was sent in earnest: it can be taken back while its agent is stuck.
    a.store->abandon(3, taken_back);
    CHECK(a.got(unwanted, lease_outcome::abandoned));
    holder.query("COMMIT");
    CHECK(a.got(stuck, lease_outcome::acquired, 3s));
    CHECK(w.rows("agent_id = 3") == 1);
}

TEST_CASE("P9: a row held by somebody else delays its own release only", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    auto const other = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    REQUIRE(a.got(a.acquire(3, other), lease_outcome::acquired));
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agent_subscriptions WHERE token = " + quoted(token) +
                 " FOR UPDATE");
    auto const stuck = a.release(3, token);
    CHECK(a.got(a.release(3, other), lease_outcome::released));
    for (int i = 0; i < 20; ++i) {
        REQUIRE(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    }
    CHECK(a.box.outcomes(stuck).empty());
    holder.query("COMMIT");
    CHECK(a.got(stuck, lease_outcome::released, 3s));
    CHECK(w.rows() == 20);
}

TEST_CASE("P9: a poisoned element fails alone, and is refused", "[db][fault]") {
    world w;
    w.sql.query("ALTER TABLE agent_subscriptions ADD CHECK (session_id <> 'poison')");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    std::vector<std::uint64_t> good;
    std::vector<std::uint64_t> bad;
    for (int i = 0; i < 200; ++i) {
        bool const poison = i % 50 == 7;
        auto const key = a.acquire(i % 9 + 1, a.token(), 1, poison ? "poison" : "fine");
        (poison ? bad : good).push_back(key);
    }
    for (auto const key : bad) {
        CHECK(a.got(key, lease_outcome::refused));
    }
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(w.rows() == static_cast<long>(good.size()));
    CHECK(a.is_up());
}

TEST_CASE("a release that the database refuses is kept and done when it can be", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.sql.query("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END $$;"
                "CREATE TRIGGER refuse BEFORE DELETE ON agent_subscriptions "
                "FOR EACH ROW EXECUTE FUNCTION refuse()");
    auto const key = a.release(3, token);
    CHECK(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    CHECK(a.box.outcomes(key).empty());
    w.sql.query("DROP TRIGGER refuse ON agent_subscriptions");
    CHECK(a.got(key, lease_outcome::released));
    CHECK(w.rows() == 1);
}

TEST_CASE("P9: what a trigger refuses stays alone, and costs nobody the connection",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.session_id = 'poison'", "RAISE EXCEPTION 'no'");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const sessions = w.backends("true");
    auto const token = a.token();
    auto const poison = a.acquire(4, token, 1, "poison");
    // It was refused alone before, so whatever comes now never shares a batch with it.
    REQUIRE(eventually([&] { return a.failures.of("transition") > 0; }));
    std::vector<std::uint64_t> good;
    for (int i = 0; i < 500; ++i) {
        good.push_back(a.acquire(i % 2 == 0 ? 4 : 6, a.token()));
    }
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(a.failures.of("transition") < 10);
    CHECK(a.box.outcomes(poison).empty());
    CHECK(w.backends("true") == sessions);
    CHECK(a.is_up());

    // In one batch with others it costs a few calls.
    holding_agents(w, a, "4, 6", [&] {
        good.clear();
        for (int i = 0; i < 100; ++i) {
            good.push_back(a.acquire(4, a.token(), 1, i == 50 ? "poison" : "fine"));
        }
    });
    for (std::size_t i = 0; i < good.size(); ++i) {
        if (i != 50) {
            CHECK(a.got(good[i], lease_outcome::acquired));
        }
    }
    CHECK(a.box.outcomes(good[50]).empty());
    a.store->abandon(4, token);
    CHECK(a.got(poison, lease_outcome::abandoned));
    w.drop_trigger();
    CHECK(a.got(good[50], lease_outcome::acquired));
    CHECK(w.rows() == 600);
}

TEST_CASE("P9: an agent whose calls take too long delays the others once, and then only itself",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_sleep(60)");
    node a{w.conninfo, "a", {}, 500ms};
    REQUIRE(a.is_up());
    // 3 and 5 share a lane.
    auto const began = std::chrono::steady_clock::now();
    std::vector<std::uint64_t> stuck{a.acquire(3, a.token())};
    REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    for (int i = 0; i < 30; ++i) {
        stuck.push_back(a.acquire(3, a.token()));
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    // Once in the lane, once in the busy lane, and then every tenth of the time.
    CHECK(a.failures.of("transition") <= 2 + (std::chrono::steady_clock::now() - began) / 5s);
    for (auto const key : stuck) {
        CHECK(a.box.outcomes(key).empty());
    }
    CHECK(a.is_up());
    w.drop_trigger();
    for (auto const key : stuck) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    // It is trusted again.
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
    CHECK(w.rows() == 63);
}

TEST_CASE("P9: a trigger that waits for a lock delays its agent only", "[db][fault]") {
    world w;
    sql_session holder{w.conninfo};
    holder.query("SELECT pg_advisory_lock(42)");
    node a{w.conninfo};
    REQUIRE(a.is_up());
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_advisory_xact_lock(42)");
    // 3 and 5 share a lane.
    std::vector<std::uint64_t> stuck{a.acquire(3, a.token())};
    for (int i = 0; i < 30; ++i) {
        stuck.push_back(a.acquire(3, a.token()));
        REQUIRE(a.got(a.acquire(5, a.token()), lease_outcome::acquired));
    }
    // In one batch of the busy lane, where an agent that is held for a moment sends them.
    std::vector<std::uint64_t> good;
    holding_agents(w, a, "3, 5, 7", [&] {
        for (int i = 0; i < 100; ++i) {
            (i % 4 == 0 ? stuck : good)
                .push_back(a.acquire(i % 4 == 0 ? 3 : 5 + i % 2 * 2, a.token()));
        }
    });
    for (auto const key : good) {
        REQUIRE(a.got(key, lease_outcome::acquired));
    }
    for (auto const key : stuck) {
        CHECK(a.box.outcomes(key).empty());
    }
    w.drop_trigger();
    for (auto const key : stuck) {
        CHECK(a.got(key, lease_outcome::acquired, 60s));
    }
}

TEST_CASE("P9: a broken trigger delays the one request that it breaks on", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const sessions = w.backends("true").size();
    w.add_trigger("INSERT", "NEW.session_id = 'poison'", "PERFORM no_such_function()");
    std::vector<std::uint64_t> poison;
    std::vector<std::uint64_t> good;
    for (int round = 0; round < 3; ++round) {
        // Its agent's and others', in one batch with it and without.
        holding_agents(w, a, "3, 5", [&] {
            for (int i = 0; i < 20; ++i) {
                if (i % 5 == 0) {
                    poison.push_back(a.acquire(3, a.token(), 1, "poison"));
                }
                good.push_back(a.acquire(3 + i % 2 * 2, a.token()));
            }
        });
        for (auto const key : good) {
            REQUIRE(a.got(key, lease_outcome::acquired));
        }
    }
    CHECK(a.failures.outages() == 0);
    CHECK(eventually([&] { return w.backends("true").size() == sessions; }));
    w.drop_trigger();
    for (auto const key : poison) {
        CHECK(a.got(key, lease_outcome::acquired, 30s));
    }
}

TEST_CASE("rights that are taken away and given back: all is done soon after", "[db][fault]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(3, token), lease_outcome::acquired));
    w.sql.query("REVOKE INSERT, DELETE, UPDATE ON agent_subscriptions FROM presenced_server");
    auto const release = a.release(3, token);
    std::vector<std::uint64_t> kept;
    for (int i = 0; i < 50; ++i) {
        kept.push_back(a.acquire(5 + i % 4, a.token()));
    }
    REQUIRE(eventually([&] { return a.failures.of("transition") > 20; }));
    CHECK(eventually([&] { return a.failures.outages() > 0; })); // ticks speak of all
    w.sql.query("GRANT INSERT, DELETE, UPDATE ON agent_subscriptions TO presenced_server");
    // Who comes now does not wait for those who failed.
    CHECK(a.got(a.acquire(9, a.token()), lease_outcome::acquired));
    CHECK(a.got(release, lease_outcome::released, 30s));
    for (auto const key : kept) {
        CHECK(a.got(key, lease_outcome::acquired, 30s));
    }
    CHECK(a.is_up());
}

TEST_CASE("P9: a batch in which one agent takes too long: the others follow at once",
          "[db][fault]") {
    world w;
    w.add_trigger("INSERT", "NEW.agent_id = 3", "PERFORM pg_sleep(60)");
    node a{w.conninfo, "a", {}, 500ms};
    REQUIRE(a.is_up());
    auto const began = std::chrono::steady_clock::now();
    std::vector<std::uint64_t> good;
    std::uint64_t stuck = 0;
    holding_agents(w, a, "1, 3, 5, 7, 9", [&] {
        stuck = a.acquire(3, a.token());
        for (int i = 0; i < 100; ++i) {
            good.push_back(a.acquire(5 + i % 3 * 2, a.token()));
        }
    });
    for (auto const key : good) {
        CHECK(a.got(key, lease_outcome::acquired));
    }
    CHECK(a.failures.of("transition") <= 3 + (std::chrono::steady_clock::now() - began) / 5s);
    CHECK(a.box.outcomes(stuck).empty());
}

TEST_CASE("P6: a backend killed in the middle of a batch: one row after the retry", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    // The batch stops at its last step, with everything written and nothing committed.
    sql_session holder{w.conninfo};
    holder.query("BEGIN; LOCK TABLE routing_transitions IN ACCESS EXCLUSIVE MODE");
    auto const key = a.acquire(3, a.token());
    auto const in_batch = "state = 'active' AND wait_event_type = 'Lock' AND "
                          "query LIKE '%presenced_transition(%'";
    REQUIRE(eventually([&] { return w.backends(in_batch).size() == 1; }));
    w.sql.query("SELECT pg_terminate_backend(" + std::to_string(w.backends(in_batch).at(0)) + ")");
    holder.query("COMMIT");
    CHECK(a.got(key, lease_outcome::acquired));
    CHECK(w.rows() == 1);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions") == 1);
}

namespace {

// A commit that waits for a standby that never comes is done, and its client does not know.
struct waiting_commit {
    explicit waiting_commit(world& where)
        : w{where} {
        w.sql.query("SET synchronous_commit = local");
        w.sql.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        w.sql.query("SELECT pg_reload_conf()");
        await_standbys();
    }
    ~waiting_commit() { end(); }
    // The server takes its new configuration when it comes to it: until then commits wait for
    // nobody. A commit of another session shows when it has.
    void await_standbys() {
        std::atomic<bool> done{false};
        std::thread committer{[&] {
            sql_session other{w.conninfo};
            while (!done) {
                other.query("SELECT pg_logical_emit_message(true, 'probe', '')");
            }
        }};
        constexpr auto waiting = "FROM pg_stat_activity WHERE datname = current_database() AND "
                                 "wait_event = 'SyncRep' AND query LIKE '%logical_emit%'";
        auto const does = eventually(
            [&] { return w.sql.number(std::string{"SELECT count(*) "} + waiting) == 1; });
        done = true;
        w.sql.query(std::string{"SELECT pg_cancel_backend(pid) "} + waiting);
        committer.join();
        if (!does) {
            throw std::runtime_error{"commits do not wait for standbys"};
        }
    }
    pid_t backend() {
        std::vector<pid_t> pids;
        if (!eventually([&] {
                pids =
                    w.backends("wait_event = 'SyncRep' AND query LIKE '%presenced_transition(%'");
                return !pids.empty();
            })) {
            throw std::runtime_error{"no commit waits for a standby"};
        }
        return pids.front();
    }
    void end() {
        w.sql.query("ALTER SYSTEM RESET synchronous_standby_names");
        w.sql.query("SELECT pg_reload_conf()");
    }
    world& w;
};

} // namespace

TEST_CASE("P6: a commit whose outcome is unknown is one row after the retry", "[db][fault]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    waiting_commit commit{w};
    auto const key = a.acquire(3, a.token());
    auto const first = commit.backend();
    w.sql.query("SELECT pg_terminate_backend(" + std::to_string(first) + ")");
    REQUIRE(eventually([&] { return w.rows("agent_id = 3") == 1; }));
    // The retry finds the row and waits for the standby again.
    CHECK(eventually([&] { return commit.backend() != first; }));
    commit.end();
    CHECK(a.got(key, lease_outcome::acquired));
    CHECK(w.rows("agent_id = 3") == 1);
    CHECK(w.sql.number("SELECT count(*) FROM routing_transitions WHERE agent_id = 3") == 1);
}

TEST_CASE("abandon: an acquire whose outcome is unknown is undone before it is answered",
          "[db][abandon]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.got(a.acquire(4, a.token()), lease_outcome::acquired));
    auto const token = a.token();
    std::uint64_t key = 0;
    {
        waiting_commit commit{w};
        key = a.acquire(3, token);
        auto const first = commit.backend();
        a.store->abandon(3, token); // in flight
        w.sql.query("SELECT pg_terminate_backend(" + std::to_string(first) + ")");
        CHECK(eventually([&] { return commit.backend() != first; }));
        CHECK(a.box.outcomes(key).empty());
    }
    CHECK(a.got(key, lease_outcome::abandoned));
    CHECK(w.rows("agent_id = 3") == 0);
    CHECK_FALSE(w.flag(3));
}

TEST_CASE("abandon: in flight, it is answered by its outcome", "[db][abandon]") {
    world w;
    node a{w.conninfo};
    REQUIRE(a.is_up());
    sql_session holder{w.conninfo};
    holder.query("BEGIN; LOCK TABLE routing_transitions IN ACCESS EXCLUSIVE MODE");
    auto const token = a.token();
    auto const key = a.acquire(3, token);
    REQUIRE(eventually([&] {
        return w.backends("wait_event_type = 'Lock' AND query LIKE '%presenced_transition(%'")
                   .size() == 1;
    }));
    a.store->abandon(3, token);
    a.store->abandon(3, token);
    holder.query("COMMIT");
    REQUIRE(eventually([&] { return !a.box.outcomes(key).empty(); }));
    // Had the lock timed out first, nothing was done, and that is what the answer says.
    auto const outcomes = a.box.outcomes(key);
    REQUIRE(outcomes.size() == 1);
    if (outcomes[0] == lease_outcome::acquired) {
        CHECK(a.got(a.release(3, token), lease_outcome::released));
    } else {
        CHECK(outcomes[0] == lease_outcome::abandoned);
    }
    CHECK(w.rows() == 0);
    CHECK_FALSE(w.flag(3));
    a.store->abandon(3, token); // long answered: nothing
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
