// What only shows after seconds that no setting shortens. Each test waits for one of them, and
// together they take as long as the longest.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

using namespace presenced::tests;

TEST_CASE("limits of 8, 10 and 30 seconds") {
    world w;
    auto const n = w.start_node();
    auto const start = steady::now();

    // A request that never gets complete: nothing at all, and half of one.
    raw_connection silent{n->port()};
    raw_connection half{n->port()};
    half.send("GET /cable HTTP/1.1\r\nHost: x\r\n");
    // A connection that is kept alive after its request, for nothing.
    raw_connection idle{n->port()};
    idle.send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    REQUIRE(idle.answer()->status == 200);

    // A token that is revoked under its session.
    auto const agent = w.add_agent();
    auto const revoked_token = w.add_token();
    auto options = w.client_options(*n);
    options.token = revoked_token;
    auto const revoked = w.session(options);
    revoked->subscribe(identifier(agent));
    REQUIRE(revoked->next() == "confirm " + identifier(agent));
    auto const revoked_at = steady::now();
    w.sql().query("UPDATE access_tokens SET revoked_at = now() WHERE token_sha256 = "
                  "sha256(convert_to('" +
                  revoked_token + "', 'UTF8'))");
    auto const bystander = w.subscriber(*n, w.add_agent());

    // A subscribe that the database does not answer: an agent that somebody else holds.
    auto const held = w.add_agent();
    auto holder = w.another_session();
    holder.query("BEGIN; SELECT FROM agents WHERE id = " + std::to_string(held) + " FOR UPDATE");
    auto const empty_handed = w.session(*n);
    auto const holding = w.subscriber(*n, agent);
    empty_handed->subscribe(identifier(held));
    holding->subscribe(identifier(held));

    // Now in the order of their times.
    CHECK(empty_handed->next(15s) == "disconnect unavailable reconnect:true");
    CHECK(since(start) >= 8s);
    CHECK(empty_handed->next() == "closed 1000");

    for (auto* const request : {&silent, &half}) {
        auto const answer = request->answer(15s);
        REQUIRE(answer);
        CHECK(answer->status == 408);
        CHECK(since(start) >= 10s);
        CHECK(request->ended());
    }
    CHECK(n->metric("presenced_limits_hit_total{limit=\"request_timeout\"}") == 2);
    // Nobody waits for an answer there, so there is none.
    CHECK(idle.ended(5s));
    CHECK(since(start) >= 10s);
    CHECK(idle.read(1, 0ms) == "");

    // Who holds something else goes on waiting, and is confirmed in the end.
    CHECK(holding->next(0ms) == "nothing");
    holder.query("ROLLBACK");
    CHECK(holding->next() == "confirm " + identifier(held));
    CHECK(w.has_rows(held, 1));

    CHECK(revoked->next(31s) == "disconnect token_expired reconnect:false");
    CHECK(since(revoked_at) < 31s); // promised: within 30 s
    CHECK(revoked->next() == "closed 1000");
    CHECK(w.has_rows(agent, 1, 1s));
    CHECK(bystander->next(0ms) == "nothing");
}

TEST_CASE("with the database frozen an upgrade gets 503 after 5 seconds, never unauthorized") {
    postgres own;
    world w{timings(1, 1), own};
    auto const n = w.start_node();
    own.freeze();
    auto const start = steady::now();
    auto const refused = try_upgrade(n->port(), "/cable?token=" + w.token());
    auto const took = since(start); // answered while the database is frozen still
    own.thaw();
    CHECK(refused.status == 503);
    CHECK(refused.header("retry-after") != "");
    CHECK(took >= 4'900ms);
    n->await_ready();
    CHECK_NOTHROW(w.session(*n));
}
