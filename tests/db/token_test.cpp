#include "tests/db/node.hpp"

using namespace presenced;
using namespace presenced::tests;

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
    a.store->check({{1, 2, 3, 4}, &a.box});
    a.store->check({{1}, &a.box});
    REQUIRE(eventually([&] { return a.box.ended().size() == 2; }));
    CHECK(a.box.ended()[0] == std::vector<db::token_id>{2, 3, 4});
    CHECK(a.box.ended()[1].empty());
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
