#include "tests/db/node.hpp"

#include <algorithm>
#include <limits>
#include <memory>

using namespace presenced;
using namespace presenced::tests;

namespace {

std::vector<db::token_grant> in_order(std::vector<db::token_grant> grants) {
    std::sort(grants.begin(), grants.end());
    return grants;
}

} // namespace

TEST_CASE("authenticate: valid, unknown, expired and revoked by the database's clock",
          "[db][tokens]") {
    world w;
    auto const insert = [&](char const* byte, std::string const& columns) {
        return w.sql.number("INSERT INTO access_tokens (token_sha256, owner_id, expires_at, "
                            "revoked_at) VALUES (decode(rpad('" +
                            std::string{byte} + "', 64, '0'), 'hex'), 42, " + columns +
                            ") RETURNING id");
    };
    auto const plain = insert("01", "NULL, NULL");
    insert("02", "now() + interval '1 hour', NULL");
    insert("03", "now() - interval '1 second', NULL");
    insert("04", "NULL, now()");
    insert("05", "'infinity', NULL");
    insert("06", "'290000-01-01', NULL");
    insert("07", "'-infinity', NULL");

    node a{w.conninfo};
    std::vector<std::uint64_t> keys;
    for (unsigned char byte = 1; byte <= 8; ++byte) {
        keys.push_back(a.authenticate(byte));
    }
    keys.push_back(a.authenticate(1)); // the same twice in one batch
    REQUIRE(eventually([&] { return a.box.tokens().size() == keys.size(); }));
    auto const answers = a.box.tokens();
    auto const at = [&](std::size_t n) {
        return answers.at(keys[n]);
    };
    CHECK(at(0).outcome == token_outcome::valid);
    CHECK(at(0).id == plain);
    CHECK(at(0).owner == 42);
    CHECK_FALSE(at(0).expires_in);
    CHECK(at(1).outcome == token_outcome::valid);
    REQUIRE(at(1).expires_in);
    CHECK(*at(1).expires_in > 59min);
    CHECK(*at(1).expires_in <= 60min);
    CHECK(at(2).outcome == token_outcome::expired);
    CHECK(at(3).outcome == token_outcome::revoked);
    CHECK(at(4).outcome == token_outcome::valid);
    CHECK_FALSE(at(4).expires_in);
    CHECK(at(5).outcome == token_outcome::valid);
    CHECK(at(5).expires_in);
    CHECK(at(6).outcome == token_outcome::expired);
    CHECK(at(7).outcome == token_outcome::unknown);
    CHECK(at(8).outcome == token_outcome::valid);
    CHECK(at(8).id == plain);
}

TEST_CASE("check: tells which of the tokens are over by now", "[db][tokens]") {
    world w;
    w.sql.query("INSERT INTO access_tokens (id, token_sha256, owner_id, expires_at, revoked_at) "
                "VALUES (1, decode(repeat('01', 32), 'hex'), 1, NULL, NULL), "
                "(2, decode(repeat('02', 32), 'hex'), 1, NULL, now()), "
                "(3, decode(repeat('03', 32), 'hex'), 1, now(), NULL)");
    node a{w.conninfo};
    auto const came_with = [](db::token_id id) {
        return db::token_grant{id, 1, db::token_role::session, nullptr};
    };
    a.store->check({{came_with(1), came_with(2), came_with(3), came_with(4)}, {}, &a.box});
    a.store->check({{came_with(1)}, {}, &a.box});
    REQUIRE(eventually([&] { return a.box.checks().size() == 2; }));
    CHECK(in_order(a.box.checks()[0].ended) ==
          std::vector{came_with(2), came_with(3), came_with(4)});
    CHECK(a.box.checks()[1].ended.empty());
}

TEST_CASE("authenticate: says the role of a token and the agents that it is narrowed to",
          "[db][tokens][identity]") {
    world w;
    w.sql.query("INSERT INTO access_tokens (token_sha256, owner_id, role, agents) VALUES "
                "(decode(rpad('01', 64, '0'), 'hex'), 42, DEFAULT, DEFAULT), "
                "(decode(rpad('02', 64, '0'), 'hex'), 42, 'peer', '{9,7,9}'), "
                "(decode(rpad('03', 64, '0'), 'hex'), 42, 'app', '{}'), "
                "(decode(rpad('04', 64, '0'), 'hex'), 42, 'admin', "
                " '{-9223372036854775808,9223372036854775807}')");
    node a{w.conninfo};
    std::vector<std::uint64_t> keys;
    for (unsigned char byte = 1; byte <= 4; ++byte) {
        keys.push_back(a.authenticate(byte));
    }
    REQUIRE(eventually([&] { return a.box.tokens().size() == keys.size(); }));
    auto const at = [&](std::size_t n) {
        return a.box.tokens().at(keys[n]);
    };
    CHECK(at(0).role == db::token_role::session);
    CHECK(at(0).agents == nullptr);
    CHECK(at(1).role == db::token_role::peer);
    REQUIRE(at(1).agents != nullptr);
    CHECK(*at(1).agents == std::vector<db::agent_id>{7, 9});
    CHECK(at(2).role == db::token_role::app);
    REQUIRE(at(2).agents != nullptr);
    CHECK(at(2).agents->empty());
    CHECK(at(3).role == db::token_role::admin);
    REQUIRE(at(3).agents != nullptr);
    CHECK(*at(3).agents == std::vector<db::agent_id>{std::numeric_limits<db::agent_id>::min(),
                                                     std::numeric_limits<db::agent_id>::max()});
}

TEST_CASE("authenticate: a token of a role that this release does not know is worth nothing",
          "[db][tokens][identity]") {
    world w;
    w.sql.query("ALTER TABLE access_tokens DROP CONSTRAINT access_tokens_role;"
                "INSERT INTO access_tokens (token_sha256, owner_id, role) VALUES "
                "(decode(rpad('01', 64, '0'), 'hex'), 42, 'auditor')");
    node a{w.conninfo};
    auto const key = a.authenticate(1);
    REQUIRE(eventually([&] { return a.box.tokens().contains(key); }));
    CHECK(a.box.tokens().at(key).outcome == token_outcome::unknown);
}

TEST_CASE("check: a token whose row says another owner, role or agents is over",
          "[db][tokens][identity]") {
    world w;
    w.sql.query("INSERT INTO access_tokens (id, token_sha256, owner_id, role, agents) VALUES "
                "(1, decode(repeat('01', 32), 'hex'), 1, 'peer', '{8,7}'), "
                "(2, decode(repeat('02', 32), 'hex'), 1, 'session', NULL), "
                "(3, decode(repeat('03', 32), 'hex'), 1, 'session', '{}')");
    auto const list = [](std::vector<db::agent_id> agents) {
        return std::make_shared<std::vector<db::agent_id> const>(std::move(agents));
    };
    using db::token_role;
    std::vector<db::token_grant> const same{{1, 1, token_role::peer, list({7, 8})},
                                            {2, 1, token_role::session, nullptr},
                                            {3, 1, token_role::session, list({})}};
    std::vector<db::token_grant> const other{
        {1, 1, token_role::peer, nullptr},         {1, 1, token_role::peer, list({7})},
        {1, 1, token_role::peer, list({7, 8, 9})}, {1, 1, token_role::app, list({7, 8})},
        {1, 2, token_role::peer, list({7, 8})},    {2, 1, token_role::session, list({})},
        {2, 1, token_role::session, list({7})},    {3, 1, token_role::session, nullptr}};
    auto asked = same;
    asked.insert(asked.end(), other.begin(), other.end());
    node a{w.conninfo};
    a.store->check({asked, {}, &a.box});
    REQUIRE(eventually([&] { return a.box.checks().size() == 1; }));
    CHECK(in_order(a.box.checks()[0].ended) == in_order(other));
    CHECK(a.box.checks()[0].lost.empty());
}

TEST_CASE("check: tells which agents have another owner by now", "[db][tokens][identity]") {
    world w; // its agents are owner 1's
    w.sql.query("UPDATE agents SET owner_id = 2 WHERE id = 4; DELETE FROM agents WHERE id = 5");
    node a{w.conninfo};
    a.store->check({{}, {{3, 1}, {4, 1}, {4, 2}, {5, 1}}, &a.box});
    REQUIRE(eventually([&] { return a.box.checks().size() == 1; }));
    CHECK(a.box.checks()[0].ended.empty());
    CHECK(a.box.checks()[0].lost == std::vector<db::held_agent>{{4, 1}});
}

TEST_CASE("authenticate: look-ups wait for the database and are answered once it is back",
          "[db][tokens]") {
    postgres server;
    auto const conninfo = server.create_database();
    node a{conninfo};
    REQUIRE(a.is_up());
    server.stop();
    auto const key = a.authenticate(1);
    server.start();
    REQUIRE(eventually([&] { return a.box.tokens().contains(key); }));
    CHECK(a.box.tokens().at(key).outcome == token_outcome::unknown);
}
