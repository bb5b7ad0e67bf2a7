// The router, the head of a request and the bytes of an answer, without a socket.
#include "server/http/request_head.hpp"
#include "server/http/router.hpp"
#include "tests/support/catch.hpp"

#include <string>
#include <variant>

using namespace presenced::server;

namespace {

using state = head_scanner::state;

std::string cause_of(std::string_view head) {
    auto const problem = find_problem(head);
    return problem ? std::string{problem->cause} : std::string{};
}

router api() {
    auto const nothing = [](std::shared_ptr<http_exchange> const&) {
    };
    router r;
    r.add({"GET", "/agents", nothing});
    r.add({"POST", "/agents", nothing, "application/json"});
    r.add({"GET", "/agents/{id}", nothing});
    r.add({"DELETE", "/agents/{id}/sessions/{session}", nothing});
    return r;
}

http_answer refusal(router const& r, std::string_view method, std::string_view path) {
    auto const matched = r.match(method, path);
    REQUIRE(std::holds_alternative<http_answer>(matched));
    return std::get<http_answer>(matched);
}

} // namespace

TEST_CASE("a head is found wherever TCP cuts it, behind empty lines, and no further") {
    std::string const bytes = "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\nGET /next";
    for (std::size_t cut = 0; cut < bytes.find("GET /next"); ++cut) {
        head_scanner scanner;
        REQUIRE(scanner.scan(std::string_view{bytes}.substr(0, cut)) == state::incomplete);
        REQUIRE(scanner.scan(bytes) == state::complete);
        CHECK(scanner.begin() == 4);
        CHECK(bytes.substr(scanner.end()) == "GET /next");
    }
}

TEST_CASE("bytes that cannot become a head are known at once") {
    for (std::string_view const bytes : {"\x16\x03\x01", " GET", "GET /\n", "GET /\r\r", "\n"}) {
        CHECK(head_scanner{}.scan(bytes) == state::garbage);
    }
    CHECK(head_scanner{}.scan(std::string_view{"GET\0", 4}) == state::garbage);
    CHECK(head_scanner{}.scan("GET / HTTP/1.1\r\n") == state::incomplete);
}

TEST_CASE("a head that HTTP allows has no problem") {
    for (auto const* head : {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\r\n\r\n",
                             "GET / HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\n\r\n",
                             "GET / HTTP/1.1\r\nHost: x\r\nX: \xc3\xa9\r\n\r\n"}) {
        CHECK(cause_of(head) == "");
    }
    CHECK(cause_of("GET / HTTP/1.1\r\n\r\n") == "no_host");
    CHECK(cause_of("GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n") == "folded_line");
    CHECK(cause_of("G@T / HTTP/1.1\r\nHost: x\r\n\r\n") == "not_http");
}

TEST_CASE("every legal form of a target leads to its path, and to the host that it names") {
    CHECK(parse_target("GET", "/a?b")->path_and_query == "/a?b");
    CHECK(parse_target("GET", "http://h:1/a?b")->path_and_query == "/a?b");
    CHECK(parse_target("GET", "http://h:1/a?b")->host == "h:1");
    CHECK(parse_target("GET", "http://h")->path_and_query == "/");
    CHECK(parse_target("GET", "WS://h?b")->path_and_query == "/?b");
    CHECK(parse_target("OPTIONS", "*")->path_and_query.empty());
    CHECK(parse_target("CONNECT", "h:443")->path_and_query.empty());
    for (auto const* target : {"*", "h:443", "", "a", "ftp://h/", "http://", "/a#b"}) {
        CHECK_FALSE(parse_target("GET", target));
    }
}

TEST_CASE("a route is found by method and path, with what stood for its segments in braces") {
    auto const r = api();
    auto const matched = r.match("DELETE", "/agents/7/sessions/a-b");
    REQUIRE(std::holds_alternative<router::found>(matched));
    CHECK(std::get<router::found>(matched).captured == std::vector<std::string>{"7", "a-b"});
    CHECK(std::holds_alternative<router::found>(r.match("HEAD", "/agents/7")));
    for (auto const* path : {"/agents/", "/agents/7/", "/agents/7/sessions", "/agentsx", "/", ""}) {
        INFO(path);
        CHECK(std::holds_alternative<http_answer>(r.match("GET", path)));
    }
    CHECK(refusal(r, "GET", "/nothing").status == 404);
}

TEST_CASE("a path without the method is answered with the methods that it has") {
    auto const r = api();
    auto const put = refusal(r, "PUT", "/agents");
    CHECK(put.status == 405);
    CHECK(put.fields.front().second == "GET, HEAD, POST");
    CHECK(refusal(r, "GET", "/agents/7/sessions/1").fields.front().second == "DELETE");
    CHECK(refusal(r, "OPTIONS", "").fields.front().second == "DELETE, GET, HEAD, POST");
}

TEST_CASE("a body is refused by its length and by its type") {
    auto const r = api();
    auto const post = std::get<router::found>(r.match("POST", "/agents"));
    CHECK_FALSE(refuse_body(post, "application/json", 10));
    CHECK_FALSE(refuse_body(post, "Application/JSON ; charset=utf-8", std::nullopt));
    CHECK_FALSE(refuse_body(post, "", 0));
    CHECK(refuse_body(post, "", 1)->status == 415);
    CHECK(refuse_body(post, "text/plain", std::nullopt)->status == 415);
    CHECK_FALSE(refuse_body(post, "application/json", body_limit));
    CHECK(refuse_body(post, "application/json", body_limit + 1)->status == 413);
    CHECK_FALSE(refuse_body(std::get<router::found>(r.match("GET", "/agents")), "x/y", 5));
}

TEST_CASE("an answer says whether the connection goes on, and HEAD has no body") {
    http_answer const ok{200, "ok\n"};
    CHECK(serialize(ok, {}) == "HTTP/1.1 200 OK\r\nServer: presenced\r\n"
                               "Content-Type: text/plain; charset=utf-8\r\n"
                               "Cache-Control: no-store\r\nContent-Length: 3\r\n\r\nok\n");
    CHECK(serialize(ok, {true, false, true}).ends_with("Content-Length: 3\r\n\r\n"));
    CHECK(serialize(ok, {false, true, true}).find("Connection: keep-alive") != std::string::npos);
    CHECK(serialize(ok, {false, false, false}).find("Connection: close") != std::string::npos);
    auto const later = serialize(try_later("Wait.", std::chrono::seconds{7}), {});
    CHECK(later.find("Retry-After: 7\r\n") != std::string::npos);
    CHECK(later.find("Connection: close") != std::string::npos);
}
