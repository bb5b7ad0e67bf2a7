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
        auto const posted = http_request(n->port(), target, {}, "POST");
        CHECK(posted.status == 405);
        CHECK(posted.header("allow") == "GET, HEAD");
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

TEST_CASE("a limit per owner counts each owner alone, and gives room back") {
    world w;
    auto const n = w.start_node({{"PRESENCED_MAX_CONNECTIONS_PER_OWNER", "2"}});
    auto const first = w.session(*n);
    auto const second = w.session(*n);
    auto const target = "/cable?token=" + w.token();
    auto const refused = try_upgrade(n->port(), target);
    CHECK(refused.status == 503);
    CHECK(refused.header("retry-after") == "5");
    CHECK(n->metric("presenced_limits_hit_total{limit=\"owner\"}") == 1);
    CHECK(n->log_has("why=\"too many connections of this owner\" owner=1 "));
    CHECK(try_upgrade(n->port(), "/cable?token=" + w.add_token(2)).status == 101);
    CHECK(try_upgrade(n->port(), "/cable?token=wrong").status == 101);
    first->close();
    CHECK(eventually([&] { return try_upgrade(n->port(), target).status == 101; }));
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
        options.token_in = presenced::clients::cable_client_options::token_place::bearer;
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

TEST_CASE("a token that is known bad costs the database nothing") {
    world w;
    auto const n = w.start_node();
    auto const lookups = [&] {
        return n->metric("presenced_database_seconds_count{statement=\"authenticate\"}");
    };
    for (int i = 0; i < 3; ++i) {
        CHECK(try_upgrade(n->port(), "/cable?token=wrong").status == 101);
    }
    auto const before = lookups();
    CHECK(before > 0);
    for (int i = 0; i < 20; ++i) {
        CHECK(try_upgrade(n->port(), "/cable?token=wrong").status == 429);
    }
    CHECK(lookups() == before);
    CHECK(n->metric("presenced_auth_failures_total{cause=\"repeated_token\"}") == 20);
}

TEST_CASE("an upgrade that RFC 6455 forbids is refused, logged and counted") {
    world w;
    auto const n = w.start_node();
    auto const ask = [&](std::string const& fields) {
        raw_connection c{n->port()};
        c.send("GET /cable?token=" + w.token() +
               " HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + fields +
               "\r\n");
        auto const answer = c.answer();
        REQUIRE(answer);
        return *answer;
    };
    std::string const version = "Sec-WebSocket-Version: 13\r\n";
    std::string const key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    SECTION("no key, a short one, two") {
        CHECK(ask(version).status == 400);
        CHECK(ask(version + "Sec-WebSocket-Key: abc\r\n").status == 400);
        CHECK(ask(version + key + key).status == 400);
        CHECK(n->metric("presenced_bad_requests_total{cause=\"websocket_key\"}") == 3);
        CHECK(n->log_has("http upgrade refused status=400 why=\"no Sec-WebSocket-Key"));
    }
    SECTION("another version, or none") {
        for (auto const* other : {"Sec-WebSocket-Version: 8\r\n", ""}) {
            auto const answer = ask(other + key);
            CHECK(answer.status == 426);
            CHECK(answer.header("sec-websocket-version") == "13");
            CHECK(answer.header("upgrade") == "websocket");
        }
        CHECK(n->metric("presenced_bad_requests_total{cause=\"websocket_version\"}") == 2);
        CHECK(n->log_has("http upgrade refused status=426"));
    }
    SECTION("a body") {
        CHECK(ask(version + key + "Content-Length: 3\r\n\r\nabc").status == 400);
    }
    CHECK(ask(version + key).status == 101);
}

TEST_CASE("an upgrade may spread its lists over lines, in any case, beside other tokens") {
    world w;
    auto const n = w.start_node();
    auto const status_of = [&](std::string const& fields, std::string const& target = "/cable") {
        raw_connection c{n->port()};
        c.send("GET " + target + "?token=" + w.token() +
               " HTTP/1.1\r\nSec-WebSocket-Version: 13\r\n"
               "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
               fields + "\r\n");
        auto const answer = c.answer();
        return answer ? answer->status : 0;
    };
    std::string const host = "Host: x\r\n";
    CHECK(status_of(host + "Connection: keep-alive\r\nConnection: Upgrade\r\n"
                           "Upgrade: websocket\r\n") == 101);
    CHECK(status_of(host + "CONNECTION:\tkeep-alive ,, uPGRADE \r\nupgrade: WebSocket\r\n") == 101);
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n") == 101);
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n") == 101);
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: websocket\r\n",
                    "http://other.example:81/cable") == 101);
    // The host of an absolute target counts, and is the page's own.
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: websocket\r\n"
                           "Origin: http://other.example:81\r\n",
                    "http://other.example:81/cable") == 101);
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: websocket\r\nOrigin: http://x\r\n",
                    "http://other.example:81/cable") == 404);
    CHECK(status_of(host + "Connection: keep-alive\r\nUpgrade: websocket\r\n") == 404);
    CHECK(status_of(host + "Connection: Upgrade\r\nUpgrade: websockets\r\n") == 404);
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
