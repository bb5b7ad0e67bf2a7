// What happens before a connection is a WebSocket: the order of refusals, tokens, subprotocols.
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

using namespace presenced::tests;

namespace {

std::string own_origin(node const& n) {
    return "http://127.0.0.1:" + std::to_string(n.port());
}

} // namespace

TEST_CASE("without an upgrade, on another path or from another origin there is only 404") {
    world w;
    auto const n = w.start_node();
    auto const target = "/cable?token=" + w.token();

    SECTION("no upgrade asked for") {
        CHECK(n->get(target).status == 404);
        CHECK(http_request(n->port(), target, {}, "POST").status == 404);
    }
    SECTION("another path, which the log explains without the token") {
        CHECK(try_upgrade(n->port(), "/other?token=" + w.token()).status == 404);
        CHECK(n->log_has("path=/other "));
        CHECK(n->log_has("PRESENCED_PATH"));
        CHECK_FALSE(n->log_has(w.token()));
        CHECK(try_upgrade(n->port(), "/cable/?token=" + w.token()).status == 404);
    }
    SECTION("another origin, which the log explains") {
        auto const answer = try_upgrade(n->port(), target, {{"Origin", "https://evil.example"}});
        CHECK(answer.status == 404);
        CHECK(answer.body.find("Page not found") == 0);
        CHECK(n->log_has("origin=https://evil.example "));
        CHECK(n->log_has("host=127.0.0.1:" + std::to_string(n->port()) + " "));
        CHECK(n->log_has("http=1.1"));
        CHECK(n->log_has("PRESENCED_ALLOWED_ORIGINS"));
        CHECK(n->metric("presenced_auth_failures_total{cause=\"bad_origin\"}") == 1);
    }
    SECTION("the server goes on after that") {
        CHECK(n->get("/healthz").status == 200);
        CHECK(try_upgrade(n->port(), target).status == 101);
    }
}

TEST_CASE("an origin is allowed when there is none, when it is the host's own, or listed") {
    world w;
    auto const n = w.start_node({{"PRESENCED_ALLOWED_ORIGINS", "app.example,*.example.org:8443"}});
    auto const answered_to = [&](std::string const& origin) {
        return try_upgrade(n->port(), "/cable?token=" + w.token(), {{"Origin", origin}}).status;
    };
    CHECK(try_upgrade(n->port(), "/cable?token=" + w.token()).status == 101);
    CHECK(answered_to(own_origin(*n)) == 101);
    CHECK(answered_to(own_origin(*n) + "/") == 101);
    CHECK(answered_to("https://127.0.0.1:" + std::to_string(n->port())) == 101);
    CHECK(answered_to("https://app.example") == 101);
    CHECK(answered_to("https://www.example.org:8443") == 101);
    CHECK(answered_to("https://www.example.org") == 404);
    CHECK(answered_to("http://127.0.0.1:1") == 404);
}

TEST_CASE("the cure that the log proposes for an origin, when it is followed, lets the page in") {
    auto const* origin = GENERATE("file://", "null", "https://app.example.com:8443",
                                  "tauri://localhost", "http://other.example/");
    world w;
    auto const target = "/cable?token=" + w.token();
    std::string entry;
    {
        auto const n = w.start_node();
        CHECK(try_upgrade(n->port(), target, {{"Origin", origin}}).status == 404);
        std::string const before = ", or add ";
        REQUIRE(n->log_has(before));
        auto const log = n->log();
        auto const begin = log.find(before) + before.size();
        auto const end = log.find(" to PRESENCED_ALLOWED_ORIGINS", begin);
        REQUIRE(end != log.npos);
        entry = log.substr(begin, end - begin);
    }
    auto const n = w.start_node({{"PRESENCED_ALLOWED_ORIGINS", entry}});
    CHECK(try_upgrade(n->port(), target, {{"Origin", origin}}).status == 101);
    CHECK(try_upgrade(n->port(), target, {{"Origin", "https://evil.example"}}).status == 404);
}

TEST_CASE("refusals come in their order: upgrade, origin, room, token") {
    world w;
    auto const n = w.start_node({{"PRESENCED_MAX_CONNECTIONS", "1"}});
    auto const first = w.session(*n);
    auto const good = "/cable?token=" + w.token();

    CHECK(n->get(good).status == 404);
    CHECK(try_upgrade(n->port(), good, {{"Origin", "http://evil.example"}}).status == 404);
    for (auto const* target : {good.c_str(), "/cable?token=wrong", "/cable"}) {
        auto const full = try_upgrade(n->port(), target);
        CHECK(full.status == 503);
        CHECK(full.header("retry-after") != "");
    }
    // What is no WebSocket is not counted, and room that was given back is there again.
    CHECK(n->get("/healthz").status == 200);
    CHECK(n->get("/metrics").status == 200);
    first->close();
    CHECK(eventually([&] { return try_upgrade(n->port(), good).status == 101; }));
}

TEST_CASE("a limit per address counts each address alone") {
    world w;
    auto const n = w.start_node({{"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "2"}});
    auto const first = w.session(*n);
    auto const second = w.session(*n);
    auto const target = "/cable?token=" + w.token();
    CHECK(try_upgrade(n->port(), target).status == 503);
    CHECK(try_upgrade(n->port(), target, {}, "127.0.0.2").status == 101);
}

TEST_CASE("headers that are too large are answered with 431") {
    world w;
    auto const n = w.start_node();
    auto const answer = try_upgrade(n->port(), "/cable", {{"X-Long", std::string(20'000, 'x')}});
    CHECK(answer.status == 431);
    CHECK(n->metric("presenced_limits_hit_total{limit=\"header_size\"}") == 1);
}

TEST_CASE("what is no HTTP is answered with 400 and hurts nobody") {
    world w;
    auto const n = w.start_node();
    raw_connection odd{n->port()};
    odd.send("\x16\x03\x01\x02 this is not HTTP\r\n\r\n");
    auto const answer = odd.answer();
    REQUIRE(answer);
    CHECK(answer->status == 400);
    CHECK(n->get("/healthz").status == 200);
}

TEST_CASE("a token comes in the query or, when there is none, as a bearer") {
    world w;
    auto const n = w.start_node();
    auto options = w.client_options(*n);

    SECTION("query") {
        CHECK_NOTHROW(w.session(options));
    }
    SECTION("bearer") {
        options.token_in = presenced::server::cable_client_options::token_place::bearer;
        CHECK_NOTHROW(w.session(options));
    }
    SECTION("the query counts when both are there") {
        options.headers = {{"Authorization", "Bearer " + w.token()}};
        options.token = "wrong";
        auto const client = w.connect(options);
        CHECK(client->rest() == std::vector<std::string>{"opened actioncable-v1-json",
                                                         "disconnect unauthorized reconnect:false",
                                                         "closed 1000"});
    }
    SECTION("percent-encoded") {
        auto const strange = std::string{"a b+c%d/é"};
        w.sql().query("INSERT INTO access_tokens (token_sha256, owner_id) "
                      "VALUES (sha256(convert_to('a b+c%d/é', 'UTF8')), 1)");
        options.token = strange;
        CHECK_NOTHROW(w.session(options));
    }
}

TEST_CASE("a bad, expired, revoked or missing token gets 101, unauthorized and close, no welcome") {
    world w;
    auto const n = w.start_node();
    auto options = w.client_options(*n);
    auto const* cause = "";

    SECTION("bad") {
        options.token = "wrong";
        cause = "unknown_token";
    }
    SECTION("expired") {
        w.sql().query("UPDATE access_tokens SET expires_at = now() - interval '1 second'");
        cause = "expired_token";
    }
    SECTION("revoked") {
        w.sql().query("UPDATE access_tokens SET revoked_at = now()");
        cause = "revoked_token";
    }
    SECTION("missing") {
        options.token.reset();
        cause = "no_token";
    }
    auto const client = w.connect(options);
    CHECK(client->rest() == std::vector<std::string>{"opened actioncable-v1-json",
                                                     "disconnect unauthorized reconnect:false",
                                                     "closed 1000"});
    CHECK(client->frames() ==
          std::vector<std::string>{R"({"type":"disconnect","reason":"unauthorized",)"
                                   R"("reconnect":false})"});
    CHECK(n->metric(std::string{"presenced_auth_failures_total{cause=\""} + cause + "\"}") == 1);
}

TEST_CASE("the same bad token gets 429 from the fourth time in a minute, others do not") {
    world w;
    auto const n = w.start_node();
    for (int i = 0; i < 3; ++i) {
        CHECK(try_upgrade(n->port(), "/cable?token=wrong").status == 101);
    }
    for (int i = 0; i < 2; ++i) {
        auto const answer = try_upgrade(n->port(), "/cable?token=wrong");
        CHECK(answer.status == 429);
        auto const wait = std::atoi(answer.header("retry-after").c_str());
        CHECK(wait > 0);
        CHECK(wait <= 60);
    }
    CHECK(try_upgrade(n->port(), "/cable?token=other").status == 101);
    CHECK(try_upgrade(n->port(), "/cable?token=" + w.token()).status == 101);
    CHECK(n->metric("presenced_auth_failures_total{cause=\"repeated_token\"}") == 2);
}

TEST_CASE("the first subprotocol on offer that is known is chosen") {
    world w;
    auto const n = w.start_node();
    auto const chosen = [&](std::vector<std::string> offered) {
        auto options = w.client_options(*n);
        options.subprotocols = std::move(offered);
        return w.connect(options)->next();
    };
    CHECK(chosen({"actioncable-v1-json", "actioncable-unsupported"}) ==
          "opened actioncable-v1-json");
    CHECK(chosen({"actioncable-unsupported", "actioncable-v1-json"}) ==
          "opened actioncable-unsupported");
    CHECK(chosen({"graphql-ws", "actioncable-v1-json"}) == "opened actioncable-v1-json");
    CHECK(try_upgrade(n->port(), "/cable?token=" + w.token()).header("sec-websocket-protocol") ==
          "");
    auto const unknown = try_upgrade(n->port(), "/cable?token=" + w.token(),
                                     {{"Sec-WebSocket-Protocol", "graphql-ws"}});
    CHECK(unknown.status == 101);
    CHECK(unknown.header("sec-websocket-protocol") == "");
}

TEST_CASE("one port answers /healthz, /readyz and /metrics, with connections kept alive") {
    world w;
    auto const n = w.start_node();
    raw_connection client{n->port()};
    for (auto const* path : {"/healthz", "/readyz", "/metrics"}) {
        client.send(std::string{"GET "} + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
        auto const answer = client.answer();
        REQUIRE(answer);
        CHECK(answer->status == 200);
        CHECK(answer->header("cache-control") == "no-store");
    }
    client.send("HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    CHECK(client.read(12).substr(0, 12) == "HTTP/1.1 200");
    CHECK(client.ended());
}

TEST_CASE("behind a trusted proxy the address and the host are the forwarded ones") {
    world w;
    auto const n = w.start_node({{"PRESENCED_TRUSTED_PROXIES", "127.0.0.1"},
                                 {"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "1"}});
    auto const from = [&](std::string const& address) {
        return headers{{"X-Forwarded-For", "203.0.113.9, " + address},
                       {"X-Forwarded-Host", "presence.example"},
                       {"Origin", "https://presence.example"}};
    };
    auto options = w.client_options(*n);
    options.headers = from("192.0.2.1");
    options.origin = "https://presence.example";
    options.headers.pop_back();
    auto const first = w.session(options);
    auto const target = "/cable?token=" + w.token();
    CHECK(try_upgrade(n->port(), target, from("192.0.2.1")).status == 503);
    CHECK(try_upgrade(n->port(), target, from("192.0.2.2")).status == 101);
    // From anybody else the headers mean nothing.
    CHECK(try_upgrade(n->port(), target, from("192.0.2.3"), "127.0.0.3").status == 404);
}
