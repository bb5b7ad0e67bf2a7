// Which Origin may connect.
#include "protocol/origin.hpp"
#include "tests/support/catch.hpp"

#include <string>
#include <vector>

using presenced::protocol::is_origin_allowed;
using presenced::protocol::is_origin_pattern;

namespace {

bool same_host(std::string_view origin, std::string_view host) {
    return is_origin_allowed(origin, host, {});
}

bool listed(std::string_view origin, std::vector<std::string> const& allowed) {
    return is_origin_allowed(origin, "presence.internal:8080", allowed);
}

} // namespace

TEST_CASE("a request without an Origin is allowed") {
    CHECK(is_origin_allowed(std::nullopt, "example.com", {}));
    CHECK(is_origin_allowed(std::nullopt, "", {}));
}

TEST_CASE("the Origin of the request's own host and port is allowed") {
    CHECK(same_host("http://example.com", "example.com"));
    CHECK(same_host("http://example.com:8080", "example.com:8080"));
    CHECK(same_host("http://127.0.0.1:8080", "127.0.0.1:8080"));
    CHECK(same_host("http://localhost:8080", "localhost:8080"));
}

TEST_CASE("another host or another port is refused") {
    CHECK_FALSE(same_host("http://evil.example", "example.com"));
    CHECK_FALSE(same_host("http://www.example.com", "example.com"));
    CHECK_FALSE(same_host("http://example.com", "www.example.com"));
    CHECK_FALSE(same_host("http://example.com.evil.example", "example.com"));
    CHECK_FALSE(same_host("http://notexample.com", "example.com"));
    CHECK_FALSE(same_host("http://example.com:8081", "example.com:8080"));
    CHECK_FALSE(same_host("http://example.com", "example.com:8080"));
    CHECK_FALSE(same_host("http://example.com:8080", "example.com"));
    CHECK_FALSE(same_host("http://127.0.0.1:8080", "localhost:8080"));
}

TEST_CASE("default ports are equal, whatever the scheme") {
    for (auto const* origin : {"http://example.com", "https://example.com", "http://example.com:80",
                               "https://example.com:443", "http://example.com:443"}) {
        for (auto const* host : {"example.com", "example.com:80", "example.com:443"}) {
            INFO(origin << " " << host);
            CHECK(same_host(origin, host));
        }
    }
}

TEST_CASE("the scheme does not count, for a proxy may end TLS") {
    CHECK(same_host("https://example.com:8443", "example.com:8443"));
    CHECK(same_host("ws://example.com", "example.com"));
    CHECK(same_host("wss://example.com", "example.com"));
    CHECK(same_host("HTTPS://example.com", "example.com"));
}

TEST_CASE("the path does not count, for clients send http://host/") {
    CHECK(same_host("http://example.com/", "example.com"));
    CHECK(same_host("http://example.com:8080/", "example.com:8080"));
    CHECK(same_host("http://example.com:8080/a/b?c=d#e", "example.com:8080"));
    CHECK(same_host("http://example.com?x", "example.com"));
    CHECK_FALSE(same_host("http://evil.example/example.com", "example.com"));
    CHECK_FALSE(same_host("http://evil.example/http://example.com", "example.com"));
}

TEST_CASE("host names compare without regard to case") {
    CHECK(same_host("http://Example.COM", "eXample.com"));
    CHECK(listed("http://Example.COM", {"exAMPLE.com"}));
    CHECK(listed("http://A.Example.COM", {"*.exAMPLE.com"}));
}

TEST_CASE("IPv6 hosts stand in brackets") {
    CHECK(same_host("http://[::1]:8080", "[::1]:8080"));
    CHECK(same_host("http://[::1]", "[::1]:80"));
    CHECK(same_host("http://[FE80::a]/", "[fe80::A]"));
    CHECK_FALSE(same_host("http://[::1]:8080", "[::1]"));
    CHECK_FALSE(same_host("http://[::2]", "[::1]"));
    CHECK_FALSE(same_host("http://::1", "[::1]"));
    CHECK_FALSE(same_host("http://[::1", "[::1]"));
    CHECK_FALSE(same_host("http://[]", "[]"));
    CHECK_FALSE(same_host("http://[::1]evil", "[::1]evil"));
    CHECK(listed("http://[::1]:3000", {"[::1]:3000"}));
}

TEST_CASE("what is no origin is refused") {
    for (auto const* origin : {"",
                               " ",
                               "example.com",
                               "//example.com",
                               "://example.com",
                               "http://",
                               "http:///",
                               "http://:80",
                               "http:example.com",
                               "http://user@example.com",
                               "http://example.com@evil.example",
                               "http://example.com:x",
                               "http://example.com:80x",
                               "http://example.com:0",
                               "http://example.com:65536",
                               "http://example.com:-1",
                               "http://example.com:80:80",
                               "http://exa mple.com",
                               "http://example.com\\evil",
                               "http://example.com,http://example.com",
                               "http://example.com http://example.com"}) {
        INFO(origin);
        CHECK_FALSE(same_host(origin, "example.com"));
    }
}

TEST_CASE("a request without a usable Host leaves only the list") {
    CHECK_FALSE(same_host("http://example.com", ""));
    CHECK_FALSE(same_host("http://example.com", "example.com:x"));
    CHECK(is_origin_allowed("http://example.com", "", std::vector<std::string>{"example.com"}));
}

TEST_CASE("spaces around the headers do not matter") {
    CHECK(same_host(" http://example.com\t", " example.com "));
}

TEST_CASE("a listed host is allowed on the default port") {
    CHECK(listed("https://app.example.com", {"other.example", "app.example.com"}));
    CHECK(listed("http://app.example.com:80/", {"app.example.com"}));
    CHECK(listed("https://app.example.com", {"app.example.com:443"}));
    CHECK_FALSE(listed("http://app.example.com:3000", {"app.example.com"}));
    CHECK_FALSE(listed("http://x.app.example.com", {"app.example.com"}));
    CHECK_FALSE(listed("http://app.example.com", {}));
}

TEST_CASE("a listed host with a port is allowed on that port") {
    CHECK(listed("http://localhost:3000", {"localhost:3000"}));
    CHECK_FALSE(listed("http://localhost:3001", {"localhost:3000"}));
    CHECK_FALSE(listed("http://localhost", {"localhost:3000"}));
}

TEST_CASE("a wildcard allows every host below, and not the host itself") {
    CHECK(listed("https://a.example.com", {"*.example.com"}));
    CHECK(listed("https://a.b.example.com", {"*.example.com"}));
    CHECK_FALSE(listed("https://example.com", {"*.example.com"}));
    CHECK_FALSE(listed("https://.example.com", {"*.example.com"}));
    CHECK_FALSE(listed("https://aexample.com", {"*.example.com"}));
    CHECK_FALSE(listed("https://example.com.evil.example", {"*.example.com"}));
    CHECK_FALSE(listed("https://a.example.com:8443", {"*.example.com"}));
    CHECK(listed("https://a.example.com:8443", {"*.example.com:8443"}));
    CHECK_FALSE(listed("https://a.example.com", {"*.example.com:8443"}));
}

TEST_CASE("the Origin null is allowed only where the list names it") {
    CHECK_FALSE(same_host("null", "null"));
    CHECK_FALSE(listed("null", {"example.com", "*.example.com"}));
    CHECK(listed("null", {"example.com", "null"}));
}

TEST_CASE("an entry with a scheme allows pages of that scheme alone") {
    CHECK(listed("https://app.example.com", {"https://app.example.com"}));
    CHECK(listed("HTTPS://App.example.com:443/", {"https://app.example.com"}));
    CHECK(listed("https://app.example.com:8443", {"https://app.example.com:8443"}));
    CHECK(listed("tauri://localhost", {"tauri://localhost"}));
    CHECK(listed("https://a.example.com", {"https://*.example.com"}));
    CHECK_FALSE(listed("http://app.example.com", {"https://app.example.com"}));
    CHECK_FALSE(listed("https://app.example.com:8443", {"https://app.example.com"}));
    CHECK_FALSE(listed("http://a.example.com", {"https://*.example.com"}));
}

TEST_CASE("the origin of a file is allowed only where the list names it") {
    CHECK_FALSE(same_host("file://", ""));
    CHECK_FALSE(same_host("file://", "file"));
    CHECK_FALSE(listed("file://", {"null", "localhost", "http://localhost"}));
    CHECK(listed("file://", {"file://"}));
    CHECK(listed("file:///home/x/index.html", {"file://"}));
    CHECK_FALSE(listed("file://server/share", {"file://"}));
    CHECK_FALSE(listed("http://", {"file://"}));
}

TEST_CASE("an asterisk allows every page, and nothing that is no origin") {
    for (auto const* origin : {"https://app.example.com", "http://x:1", "null", "file://"}) {
        CHECK(listed(origin, {"*"}));
    }
    CHECK_FALSE(listed("app.example.com", {"*"}));
    CHECK_FALSE(listed("", {"*"}));
}

TEST_CASE("the entry that is proposed for an origin allows it and is taken by the list") {
    for (auto const* origin :
         {"https://app.example.com", "http://App.example.com:3000/", "https://[::1]:8443", "null",
          "file://", "FILE:///x", "tauri://localhost", "http://h:/x?y", " https://a.example "}) {
        INFO(origin);
        auto const entry = presenced::protocol::pattern_for_origin(origin);
        REQUIRE(entry);
        CHECK(is_origin_pattern(*entry));
        CHECK(listed(origin, {*entry}));
        CHECK_FALSE(listed("https://evil.example", {*entry}));
    }
    for (auto const* origin : {"", "app.example.com", "http://", "https://a b", "x,y"}) {
        CHECK_FALSE(presenced::protocol::pattern_for_origin(origin));
    }
}

TEST_CASE("a bad entry of the list allows nobody") {
    for (auto const* entry :
         {"**", "*.", "", "https://app.example.com/", "app.example.com/", "://app.example.com"}) {
        CHECK_FALSE(listed("https://app.example.com", {entry}));
    }
}

TEST_CASE("the list takes hosts, origins, wildcards, addresses, null and file") {
    for (auto const* text :
         {"example.com", "localhost", "localhost:3000", "*.example.com", "*.example.com:8443",
          "127.0.0.1:3000", "[::1]", "[::1]:3000", "null", "my_host-1", "*", "file://",
          "https://example.com", "https://example.com:8443", "https://*.example.com",
          "tauri://localhost"}) {
        INFO(text);
        CHECK(is_origin_pattern(text));
    }
}

TEST_CASE("the list takes nothing else") {
    for (auto const* text : {"",
                             " ",
                             "*.",
                             "*.*.example.com",
                             "a.*.example.com",
                             "*example.com",
                             ".",
                             "*..x",
                             "https://example.com/",
                             "https://",
                             "https://*",
                             "file:///x",
                             "file:",
                             "1x://example.com",
                             "://example.com",
                             "example.com/",
                             "example.com:",
                             "example.com:0",
                             "example.com:65536",
                             "example.com:http",
                             "example.com:*",
                             "::1",
                             "[::1",
                             "*.[::1]",
                             "user@example.com",
                             " example.com",
                             "example.com ",
                             "a b",
                             "a,b"}) {
        INFO(text);
        CHECK_FALSE(is_origin_pattern(text));
    }
}
