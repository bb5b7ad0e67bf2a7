#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

TEST_CASE("renew: only last_seen_at of its own row changes", "[db][renew]") {
    world w;
    node a{w.conninfo};
    auto const mine = a.token();
    auto const other = a.token();
    REQUIRE(a.got(a.acquire(7, mine), lease_outcome::acquired));
    REQUIRE(a.got(a.acquire(7, other), lease_outcome::acquired));
    w.sql.query("UPDATE agent_subscriptions SET last_seen_at = last_seen_at - interval '10 s'");
    auto const rest = "SELECT string_agg(row(agent_id, token, session_id, node, created_at)::text, "
                      "';' ORDER BY token) FROM agent_subscriptions";
    auto const before = w.sql.value(rest);
    REQUIRE(a.got(a.renew(7, mine), lease_outcome::renewed));
    CHECK(w.rows("last_seen_at > now() - interval '5 s'") == 1);
    CHECK(w.sql.value(rest) == before);
}

TEST_CASE("a subscription's row is not given to another agent", "[db][renew]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    // Its client would be left deaf, and nobody would tell it.
    CHECK_THROWS(w.sql.query("UPDATE agent_subscriptions SET agent_id = 8"));
    CHECK_THROWS(w.sql.query("UPDATE agent_subscriptions SET token = 'x'"));
    CHECK(w.rows("agent_id = 7") == 1);
    CHECK(a.got(a.renew(7, token), lease_outcome::renewed));
}

TEST_CASE("P4: a renewal never brings a removed row back", "[db][renew]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    w.sql.query("DELETE FROM agent_subscriptions");
    CHECK(a.got(a.renew(7, token), lease_outcome::missing));
    CHECK(w.rows() == 0);
    auto const second = a.token();
    REQUIRE(a.got(a.acquire(7, second), lease_outcome::acquired));
    w.sql.query("DELETE FROM agents WHERE id = 7");
    CHECK(a.got(a.renew(7, second), lease_outcome::missing));
}

TEST_CASE("renew: thousands of renewals at once are all answered", "[db][renew]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 3'000; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 3'000; }));
    w.sql.query("DELETE FROM agent_subscriptions WHERE agent_id = 5");
    std::vector<std::uint64_t> keys;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        keys.push_back(a.renew(static_cast<db::agent_id>(i % 9 + 1), tokens[i]));
    }
    REQUIRE(eventually([&] { return a.box.answered() == 6'000; }));
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
        auto const expected = i % 9 + 1 == 5 ? lease_outcome::missing : lease_outcome::renewed;
        wrong += a.box.outcomes(keys[i]) == std::vector{expected} ? 0U : 1U;
    }
    CHECK(wrong == 0);
}

TEST_CASE("renew: renewals are HOT updates, heartbeat after heartbeat", "[db][renew]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 2'000; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back(), 1, "00000000-0000-4000-8000-000000000000");
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 2'000; }));
    auto const counted = [&](std::string const& what) {
        return w.sql.number("SELECT " + what +
                            " FROM pg_stat_user_tables "
                            "WHERE relname = 'agent_subscriptions'");
    };
    // As many rounds as a page would need to fill up if nothing of it were used again.
    std::size_t const rounds = 6;
    for (std::size_t round = 1; round <= rounds; ++round) {
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            a.renew(static_cast<db::agent_id>(i % 9 + 1), tokens[i]);
        }
        REQUIRE(eventually(
            [&] { return a.box.count(lease_outcome::renewed) == round * tokens.size(); }));
    }
    // A backend reports what it did when it has been idle for a while, or ends.
    REQUIRE(eventually(
        [&] { return counted("n_tup_upd") >= static_cast<long>(rounds * tokens.size()); }, 20s));
    auto const all = counted("n_tup_upd");
    auto const hot = counted("n_tup_hot_upd");
    INFO(hot << " of " << all);
    CHECK(hot * 100 >= all * 99);
}

TEST_CASE("renew: a renewal writes one record of WAL, and locks its row by that", "[db][renew]") {
    world w;
    node a{w.conninfo};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 500; ++i) {
        tokens.push_back(a.token());
        a.acquire(7, tokens.back());
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 500; }));
    w.sql.query("CREATE EXTENSION pg_walinspect; CHECKPOINT");
    auto const from = w.sql.value("SELECT pg_current_wal_insert_lsn()");
    for (auto const& token : tokens) {
        a.renew(7, token);
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::renewed) == 500; }));
    // A commit of anything that waits, so that the renewals before it are written.
    w.sql.query("CREATE TABLE marker ()");
    auto const records = [&](std::string const& type) {
        return w.sql.number("SELECT count(*) FROM pg_get_wal_records_info('" + from +
                            "', pg_current_wal_flush_lsn()) WHERE resource_manager = 'Heap' AND "
                            "record_type IN " +
                            type);
    };
    CHECK(records("('HOT_UPDATE', 'UPDATE')") >= 500);
    // Ticks lock a row or two. A BEFORE trigger on updates, whatever it is for, would lock them
    // all, and that is half as much WAL again.
    CHECK(records("('LOCK')") < 100);
}

TEST_CASE("tick: comes about every tick(), and from the renewals' transaction", "[db][tick]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    REQUIRE(a.is_up());
    auto const ticked = [&] {
        return w.sql.value("SELECT ticked_at FROM presence_clock");
    };
    auto const first = ticked();
    CHECK(eventually([&] { return ticked() != first; }, 2s));
    CHECK(a.store->health().since_tick < 2s);
    CHECK(w.sql.value("SELECT presence_known()") == "t");

    // Whatever stops renewals stops ticks too: here, DDL that holds the table.
    sql_session ddl{w.conninfo};
    ddl.query("BEGIN; LOCK TABLE agent_subscriptions IN ACCESS EXCLUSIVE MODE");
    auto const stopped = ticked();
    // Long enough for the gap to be an amnesty (2 x sweep), with every tick tried meanwhile.
    CHECK(eventually([&] {
        return w.sql.value("SELECT clock_timestamp() > judge_until + interval '200 ms' "
                           "FROM presence_clock") == "t";
    }));
    CHECK(w.sql.number("SELECT count(*) FROM presence_clock WHERE ticked_at > '" + stopped +
                       "'::timestamptz + interval '100 ms'") == 0);
    ddl.query("COMMIT");
    CHECK(eventually(
        [&] {
            return w.sql.value("SELECT amnesty_until > clock_timestamp() + interval '1 s' "
                               "FROM presence_clock") == "t";
        },
        5s));
}

TEST_CASE("P3: after a gap in the ticks nobody is reaped for one stale_after", "[db][tick]") {
    world w;
    node a{w.conninfo};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    // As if the database had been away for a minute: the last tick and the row are that old.
    w.sql.query("BEGIN; LOCK TABLE agent_subscriptions IN ACCESS EXCLUSIVE MODE;"
                "UPDATE presence_clock SET ticked_at = now() - interval '60 s', "
                "judge_until = now() - interval '50 s', amnesty_until = '-infinity';"
                "UPDATE agent_subscriptions SET last_seen_at = now() - interval '61 s'; COMMIT");
    auto const other = a.token();
    REQUIRE(a.got(a.acquire(7, other), lease_outcome::acquired));
    CHECK(eventually(
        [&] { return w.sql.value("SELECT amnesty_until > now() FROM presence_clock") == "t"; }));
    REQUIRE(a.got(a.release(7, other), lease_outcome::released));
    CHECK(w.rows("token = '" + std::string{token.view()} + "'") == 1);
    CHECK(w.flag(7));
    CHECK(a.got(a.renew(7, token), lease_outcome::renewed));
}

TEST_CASE("P3: whoever comes before the first tick after a gap reaps nobody", "[db][tick]") {
    world w;
    // The gap began when the row's node had missed some renewals: at judge_until it is just stale.
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token, last_seen_at) "
                "VALUES (7, 'late', now() - interval '105 s');"
                "UPDATE agents SET routing_active = true WHERE id = 7;"
                "UPDATE presence_clock SET ticked_at = now() - interval '69 s', "
                "judge_until = now() - interval '59 s', amnesty_until = '-infinity'");
    auto const settle =
        "SELECT reaped FROM presenced_transition(ARRAY['settle'], ARRAY[7::bigint], "
        "ARRAY[NULL::text], ARRAY[NULL::text], ARRAY[NULL::bigint], 'x', "
        "clock_timestamp(), false)";
    CHECK(w.sql.value(settle) == "0");
    w.sql.query("SELECT presenced_tick('x', 'boot', '', interval '10 s', '{}')");
    CHECK(w.sql.value(settle) == "0");
    CHECK(w.flag(7));
    // The amnesty over, and ticks coming in, it goes.
    w.sql.query("UPDATE presence_clock SET amnesty_until = '-infinity'");
    CHECK(w.sql.value(settle) == "1");
    CHECK_FALSE(w.flag(7));
}

TEST_CASE("P9: a subscription row held by somebody else delays its own renewal only, and is not "
          "reaped although stale by age",
          "[db][renew]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 50; ++i) {
        tokens.push_back(a.token());
        REQUIRE(a.got(a.acquire(7, tokens.back()), lease_outcome::acquired));
    }
    sql_session holder{w.conninfo};
    std::string const held{tokens[20].view()};
    holder.query("BEGIN; SELECT 1 FROM agent_subscriptions WHERE token = '" + held +
                 "' FOR UPDATE");
    auto const waiting = a.renew(7, tokens[20]);
    // Everybody else is renewed time and again while the held row ages past stale_after.
    std::chrono::milliseconds longest{0};
    std::size_t rounds = 0;
    auto const aged = [&] {
        return w.rows("token = '" + held +
                      "' AND last_seen_at < clock_timestamp() - "
                      "interval '3 s'") == 1;
    };
    CHECK(eventually([&] {
        auto const began = std::chrono::steady_clock::now();
        std::vector<std::uint64_t> keys;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            if (i != 20) {
                keys.push_back(a.renew(7, tokens[i]));
            }
        }
        bool all = true;
        for (auto const key : keys) {
            all = all && a.got(key, lease_outcome::renewed);
        }
        longest = std::max(longest, std::chrono::duration_cast<std::chrono::milliseconds>(
                                        std::chrono::steady_clock::now() - began));
        ++rounds;
        return !all || aged();
    }));
    CHECK(rounds > 1);
    CHECK(longest < 2s); // 100 ms of waiting; the rest is room for slow machines and sanitizers
    CHECK(aged());
    CHECK(a.box.outcomes(waiting).empty());
    // The sweep, and a subscribe, which reaps too: the held one stays.
    REQUIRE(a.got(a.acquire(7, a.token()), lease_outcome::acquired));
    CHECK(w.rows() == 51);
    CHECK(w.sql.number("SELECT count(*) FROM live_agent_subscriptions") == 51);
    CHECK(w.sql.number("SELECT cardinality(vouched) FROM nodes") == 1);
    holder.query("ROLLBACK");
    CHECK(a.got(waiting, lease_outcome::renewed));
    CHECK(w.rows() == 51);
    CHECK(eventually([&] { return w.sql.number("SELECT cardinality(vouched) FROM nodes") == 0; }));
}

TEST_CASE("renew: a renewal that is forgotten is not vouched for any more", "[db][renew]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    auto const token = a.token();
    REQUIRE(a.got(a.acquire(7, token), lease_outcome::acquired));
    sql_session holder{w.conninfo};
    holder.query("BEGIN; SELECT 1 FROM agent_subscriptions FOR UPDATE");
    a.renew(7, token);
    auto const vouched = [&] {
        return w.sql.number("SELECT cardinality(vouched) FROM nodes");
    };
    REQUIRE(eventually([&] { return vouched() == 1; }));
    a.store->forget_renewal(7, token);
    CHECK(eventually([&] { return vouched() == 0; }));
}

TEST_CASE("renew: a row whose update the database refuses delays nobody else", "[db][renew]") {
    world w{quick()};
    node a{w.conninfo, "a", quick()};
    std::vector<lease_token> tokens;
    for (int i = 0; i < 20; ++i) {
        tokens.push_back(a.token());
        REQUIRE(a.got(a.acquire(7, tokens.back(), 1, i == 5 ? "poison" : "fine"),
                      lease_outcome::acquired));
    }
    w.sql.query("ALTER TABLE agent_subscriptions ADD CONSTRAINT no_poison "
                "CHECK (session_id <> 'poison') NOT VALID");
    std::vector<std::uint64_t> keys;
    for (auto const& token : tokens) {
        keys.push_back(a.renew(7, token));
    }
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (i != 5) {
            CHECK(a.got(keys[i], lease_outcome::renewed));
        }
    }
    CHECK(a.box.outcomes(keys[5]).empty());
    w.sql.query("ALTER TABLE agent_subscriptions DROP CONSTRAINT no_poison");
    CHECK(a.got(keys[5], lease_outcome::renewed));
}

namespace {

// A hundred subscriptions of agent 7, whose session_id says `special` where `is_special(i)`.
template <class Choice>
std::vector<lease_token> subscribe_hundred(node& a, std::string const& special, Choice is_special) {
    std::vector<lease_token> tokens;
    for (int i = 0; i < 100; ++i) {
        tokens.push_back(a.token());
        a.acquire(7, tokens.back(), 1, is_special(i) ? special : "fine");
    }
    REQUIRE(eventually([&] { return a.box.count(lease_outcome::acquired) == 100; }));
    return tokens;
}

// Each of them but one is renewed, time and again.
void renew_all_but(node& a, std::vector<lease_token> const& tokens, std::size_t left_out) {
    for (int round = 0; round < 5; ++round) {
        std::vector<std::uint64_t> keys;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            if (i != left_out) {
                keys.push_back(a.renew(7, tokens[i]));
            }
        }
        for (auto const key : keys) {
            REQUIRE(a.got(key, lease_outcome::renewed));
        }
    }
}

long vouched(world& w) {
    return w.sql.number("SELECT cardinality(vouched) FROM nodes");
}

} // namespace

TEST_CASE("P9: a row whose update takes too long delays the others once, and then only itself",
          "[db][renew]") {
    world w;
    node a{w.conninfo, "a", {}, 300ms};
    auto const tokens = subscribe_hundred(a, "slow", [](int i) { return i == 50; });
    w.add_trigger("UPDATE", "NEW.session_id = 'slow'", "PERFORM pg_sleep(60)");
    auto const stuck = a.renew(7, tokens[50]);
    renew_all_but(a, tokens, 50);
    CHECK(a.failures.of("renew") <= 3); // all of them, a twentieth, itself
    CHECK(a.box.outcomes(stuck).empty());
    CHECK(eventually([&] { return vouched(w) == 1; }));
    CHECK(a.store->health().since_tick < 10s);
}

TEST_CASE("P9: rows whose updates take too long are looked for one at a time, and everybody is "
          "vouched for meanwhile",
          "[db][renew]") {
    world w;
    node a{w.conninfo, "a", {}, 300ms};
    auto const tokens = subscribe_hundred(a, "slow", [](int i) { return i % 30 == 5; });
    w.add_trigger("UPDATE", "NEW.session_id = 'slow'", "PERFORM pg_sleep(60)");
    w.sql.query("CREATE SEQUENCE ticks; GRANT USAGE ON ticks TO PUBLIC;"
                "CREATE FUNCTION count_tick() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM nextval('ticks'); RETURN NEW; END $$;"
                "CREATE TRIGGER count_tick BEFORE UPDATE ON presence_clock "
                "FOR EACH ROW EXECUTE FUNCTION count_tick();"
                // Who looks now and then may miss the moment when there were the most.
                "CREATE SEQUENCE most_vouched; GRANT ALL ON most_vouched TO PUBLIC;"
                "CREATE FUNCTION note_vouched() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM setval('most_vouched', greatest(last_value, cardinality(NEW.vouched))) "
                "FROM most_vouched; RETURN NEW; END $$;"
                "CREATE TRIGGER note_vouched BEFORE UPDATE ON nodes "
                "FOR EACH ROW EXECUTE FUNCTION note_vouched()");
    for (auto const& token : tokens) {
        a.renew(7, token);
    }
    CHECK(eventually([&] { return a.box.count(lease_outcome::renewed) == 96; }, 60s));
    // All but those before the first slow one, which may have gone ahead of the others.
    CHECK(w.sql.number("SELECT last_value FROM most_vouched") >= 95);
    CHECK(eventually([&] { return vouched(w) == 4; }));
    // Lease time went on: between two ticks no more than one call was let run into its timeout.
    auto const failures = a.failures.of("renew");
    CHECK(failures <= w.sql.number("SELECT last_value FROM ticks") + 1);
}

TEST_CASE("P9: a trigger that waits for a lock on one row, or is broken there, holds up that row",
          "[db][renew]") {
    world w;
    node a{w.conninfo};
    auto const tokens = subscribe_hundred(a, "stuck", [](int i) { return i == 50; });
    auto const action = GENERATE("PERFORM pg_advisory_xact_lock(42)", "PERFORM no_such_function()");
    w.add_trigger("UPDATE", "NEW.session_id = 'stuck'", action);
    sql_session holder{w.conninfo};
    holder.query("SELECT pg_advisory_lock(42)");
    auto const stuck = a.renew(7, tokens[50]);
    renew_all_but(a, tokens, 50);
    // Lease time goes on, and the one that waits is vouched for.
    auto const ticked = w.sql.value("SELECT ticked_at FROM presence_clock");
    CHECK(eventually([&] {
        return w.sql.value("SELECT ticked_at FROM presence_clock") != ticked && vouched(w) == 1;
    }));
    CHECK(a.box.outcomes(stuck).empty());
    w.drop_trigger();
    CHECK(a.got(stuck, lease_outcome::renewed, 60s));
}
