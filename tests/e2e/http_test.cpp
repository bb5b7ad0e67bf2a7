// HTTP/1 by hand: what it allows is understood, what it forbids is refused.
#include "tests/e2e/flood.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <string_view>
#include <thread>

#include <unistd.h>

using namespace presenced::tests;

namespace {

// The status of the first answer, 0 when there is none.
unsigned status_of(node const& n, std::string const& bytes) {
    raw_connection c{n.port()};
    c.send(bytes);
    auto const answer = c.answer();
    return answer ? answer->status : 0;
}

constexpr auto request_limit = 10s; // as in docs/protocol.md

// A request that is under way when its limit comes. All of `bytes` is sent around that moment,
// `piece` bytes at a time; a peer that reads as fast as it can finds more each time.
class late_request {
public:
    late_request(node const& n, std::string_view before, std::string_view bytes, std::size_t piece)
        : socket_{n.port()}
        , bytes_{bytes}
        , piece_{piece} {
        socket_.send(before);
    }

    void answer_comes() {
        REQUIRE(socket_.answer());
        start_ = steady::now();
    }
    void send_more(milliseconds from) {
        if (since(start_) >= request_limit + from && sent_ < bytes_.size()) {
            auto const piece = bytes_.substr(sent_, piece_);
            sent_ += socket_.send_some(piece).value_or(piece.size());
        }
    }
    // 408 and the end, or the end alone.
    bool is_ended(steady::time_point by) {
        auto const left = [by] {
            return std::max(std::chrono::ceil<milliseconds>(by - steady::now()), 0ms);
        };
        auto const answer = socket_.answer(left());
        return (!answer || answer->status == 408) && socket_.ended(left());
    }

private:
    raw_connection socket_;
    steady::time_point start_ = steady::now();
    std::string_view bytes_;
    std::size_t piece_;
    std::size_t sent_ = 0;
};

} // namespace

TEST_CASE("what HTTP allows is understood") {
    world w;
    auto const n = w.start_node();
    auto const ok = [&](std::string const& bytes) {
        INFO(bytes);
        CHECK(status_of(*n, bytes) == 200);
    };
    ok("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    ok("\r\nGET /healthz HTTP/1.1\r\nhOST:x:80 \r\n\r\n");
    ok("GET /healthz?x=y HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n");
    ok("GET /healthz HTTP/1.1\r\nHost:\r\n\r\n");
    ok("GET http://x/healthz HTTP/1.1\r\nHost: y\r\n\r\n");
    ok("GET HTTPS://x:443/healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    ok("GET /healthz HTTP/1.0\r\n\r\n");
    ok("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
    ok("GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
       "3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n");
}

TEST_CASE("what HTTP forbids is refused, logged and counted, and the connection ends") {
    world w;
    auto const n = w.start_node();
    auto const refused = [&](unsigned status, std::string const& cause, std::string const& bytes) {
        INFO(bytes);
        auto const counter = "presenced_bad_requests_total{cause=\"" + cause + "\"}";
        auto const before = n->metric(counter);
        raw_connection c{n->port()};
        c.send(bytes);
        auto const answer = c.answer();
        REQUIRE(answer);
        CHECK(answer->status == status);
        CHECK(answer->header("connection") == "close");
        CHECK(c.ended());
        CHECK(n->metric(counter) == before + 1);
        CHECK(n->log_has("http request refused status=" + std::to_string(status) +
                         " cause=" + cause + " address=127.0.0.1"));
    };
    std::string const get = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    std::string const post = "POST /healthz HTTP/1.1\r\nHost: x\r\n";
    SECTION("lengths") {
        refused(400, "two_lengths",
                post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        refused(400, "two_lengths",
                post + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n");
        refused(400, "two_lengths", post + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc");
        refused(400, "two_lengths", post + "Content-Length: 3, 3\r\n\r\nabc");
        refused(400, "bad_length", post + "Content-Length: +3\r\n\r\nabc");
        refused(400, "bad_length", post + "Content-Length: 0x3\r\n\r\nabc");
        refused(400, "bad_length", post + "Content-Length:\r\n\r\n");
    }
    SECTION("encodings") { // the log has ten lines a second
        refused(501, "transfer_encoding", post + "Transfer-Encoding: gzip, chunked\r\n\r\n");
        refused(501, "transfer_encoding", post + "Transfer-Encoding: chunked, chunked\r\n\r\n");
        refused(400, "transfer_encoding",
                "POST /healthz HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        refused(400, "body", get + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n");
        refused(400, "body", get + "Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n");
    }
    SECTION("fields") {
        refused(400, "folded_line", get + "X-Long: a\r\n b\r\n\r\n");
        refused(400, "field_name", get + "X-Space : a\r\n\r\n");
        refused(400, "field_name", get + "no colon\r\n\r\n");
        refused(400, "field_name", get + ": nothing\r\n\r\n");
        refused(400, "field_value", get + "X-Control: a\x01z\r\n\r\n");
        refused(417, "expect", get + "Expect: the-unexpected\r\n\r\n");
    }
    SECTION("hosts") {
        refused(400, "no_host", "GET /healthz HTTP/1.1\r\n\r\n");
        refused(400, "two_hosts", get + "Host: x\r\n\r\n");
        refused(400, "two_hosts", "GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n");
        refused(400, "bad_host", "GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n");
        refused(400, "bad_host", "GET /healthz HTTP/1.1\r\nHost: user@x\r\n\r\n");
    }
    SECTION("targets and versions") {
        refused(400, "target", "GET healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "target", "GET * HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "target", "GET /healthz#part HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "target", "GET ftp://x/healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "target", "GET http://user@x/healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "target", "CONNECT /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(505, "version", "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n");
        refused(400, "not_http", "GET  HTTP/1.1\r\nHost: x\r\n\r\n");
        refused(400, "not_http", "GET /healthz\r\nHost: x\r\n\r\n");
    }
    SECTION("what is no HTTP is refused before its end") {
        refused(400, "not_http", "\x16\x03\x01\x02");
        refused(400, "not_http", "GET /healthz HTTP/1.1\n");
        refused(400, "not_http", "GET /healthz HTTP/1.1\rHost");
    }
    CHECK(n->get("/healthz").status == 200);
}

TEST_CASE("a method that a path does not have is answered with those that it has") {
    world w;
    auto const n = w.start_node();
    for (auto const* method : {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"}) {
        auto const answer = http_request(n->port(), "/healthz", {}, method);
        CHECK(answer.status == 405);
        CHECK(answer.header("allow") == "GET, HEAD");
    }
    for (auto const* request : {"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
                                "CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"}) {
        raw_connection c{n->port()};
        c.send(request);
        auto const answer = c.answer();
        REQUIRE(answer);
        CHECK(answer->status == 405);
        CHECK(answer->header("allow") == "GET, HEAD");
    }
    CHECK(http_request(n->port(), "/nothing", {}, "POST").status == 404);
}

TEST_CASE("a body is taken up to a mebibyte, whole or in chunks, and the connection goes on") {
    world w;
    auto const n = w.start_node();
    raw_connection c{n->port()};
    std::string const head = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    std::string const mebibyte(1024 * 1024, 'x');
    SECTION("with its length") {
        c.send(head + "Content-Length: 1048576\r\n\r\n" + mebibyte);
    }
    SECTION("in chunks") {
        c.send(head + "Transfer-Encoding: chunked\r\n\r\n100000\r\n" + mebibyte + "\r\n0\r\n\r\n");
    }
    SECTION("asked for first") {
        c.send(head + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
        auto const go_on = c.answer();
        REQUIRE(go_on);
        CHECK(go_on->status == 100);
        c.send("abc");
    }
    auto const first = c.answer();
    REQUIRE(first);
    CHECK(first->status == 200);
    c.send(head + "\r\n");
    auto const second = c.answer();
    REQUIRE(second);
    CHECK(second->status == 200);
}

TEST_CASE("fields behind a chunked body ask for nothing and say nothing about the client") {
    world w;
    auto const n = w.start_node({{"PRESENCED_TRUSTED_PROXIES", "127.0.0.1"}});
    raw_connection c{n->port()};
    c.send("GET /cable HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n"
           "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"
           "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer " +
           w.token() +
           "\r\nX-Forwarded-For: 192.0.2.66\r\nX-Forwarded-Host: forged.example\r\n"
           "Origin: http://forged.example\r\n\r\n");
    auto const answer = c.answer();
    REQUIRE(answer);
    CHECK(answer->status == 404);
    CHECK(n->log_has("why=\"no WebSocket upgrade\" path=/cable origin=\"\" host=x "
                     "http=1.1 address=192.0.2.1 "));
}

TEST_CASE("a request that is not complete after ten seconds ends, however fast its bytes come") {
    world w;
    auto const n = w.start_node({{"PRESENCED_THREADS", "1"}});
    std::string const head = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    auto const next = head + repeated("X: " + std::string(91, 'y') + "\r\n", 150);
    auto const chunks = repeated("1;" + std::string(8 * 1024, 'x') + "\r\nx\r\n", 4'000);
    std::string const flat(1'000'000, 'x');
    auto const first = steady::now();
    std::deque<late_request> chunked;
    std::deque<late_request> counted;
    std::deque<late_request> heads;
    for (int i = 0; i < 8; ++i) {
        chunked.emplace_back(*n, head + "Transfer-Encoding: chunked\r\n\r\n", chunks, 64 * 1024);
        counted.emplace_back(*n, head + "Content-Length: 1048576\r\n\r\n", flat, 16 * 1024);
    }
    for (int i = 0; i < 64; ++i) {
        heads.emplace_back(*n, "", next, next.size());
        heads.emplace_back(*n, head + "\r\n", next, next.size());
        heads.back().answer_comes();
    }
    auto const last = steady::now();
    std::this_thread::sleep_until(first + request_limit - 100ms); // their lateness is the attack
    while (since(last) < request_limit + 200ms) {
        for (std::size_t i = 0; i < chunked.size(); ++i) {
            chunked[i].send_more(-70ms);
            counted[i].send_more(-3ms);
        }
        for (std::size_t i = 0; i < heads.size(); ++i) {
            heads[i].send_more(milliseconds{i / 10} - 4ms);
        }
    }
    auto const ended = [](std::deque<late_request>& those) {
        auto const by = steady::now() + 5s;
        return std::count_if(those.begin(), those.end(), [by](auto& r) { return r.is_ended(by); });
    };
    CHECK(ended(chunked) == 8);
    CHECK(ended(counted) == 8);
    CHECK(ended(heads) == 128);
}

TEST_CASE("a body of more than a mebibyte is refused before it is read") {
    world w;
    auto const n = w.start_node();
    raw_connection c{n->port()};
    std::string const head = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    SECTION("by its length, and nobody is told to go on") {
        c.send(head + "Expect: 100-continue\r\nContent-Length: 1048577\r\n\r\n");
    }
    SECTION("by its chunks") {
        c.send(head + "Transfer-Encoding: chunked\r\n\r\n100001\r\n" + std::string(0x100001, 'x'));
    }
    auto const answer = c.answer();
    REQUIRE(answer);
    CHECK(answer->status == 413);
    CHECK(c.ended());
}

TEST_CASE("requests may be pipelined, and are answered in their order") {
    world w;
    auto const n = w.start_node();
    raw_connection c{n->port()};
    std::string all;
    for (auto const* path : {"/healthz", "/nothing", "/readyz"}) {
        all += std::string{"GET "} + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    }
    c.send(all);
    for (unsigned const status : {200U, 404U, 200U}) {
        auto const answer = c.answer();
        REQUIRE(answer);
        CHECK(answer->status == status);
    }
}

TEST_CASE("HTTP/1.0 ends the connection unless it asks otherwise, and HTTP/1.1 the other way") {
    world w;
    auto const n = w.start_node();
    auto const stays = [&](std::string const& bytes) {
        raw_connection c{n->port()};
        c.send(bytes);
        REQUIRE(c.answer());
        if (c.ended(100ms)) {
            return false;
        }
        c.send(bytes);
        return c.answer().has_value();
    };
    CHECK_FALSE(stays("GET /healthz HTTP/1.0\r\n\r\n"));
    CHECK(stays("GET /healthz HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    CHECK(stays("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"));
    CHECK_FALSE(stays("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    CHECK_FALSE(
        stays("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: x\r\nConnection: Close\r\n\r\n"));
}

TEST_CASE(
    "an address of several that this machine lacks is a warning, and [::] says what it takes") {
    world w;
    auto const n = w.start_node({{"PRESENCED_LISTEN", "127.0.0.1:0,192.0.2.1:0,[::]:0"}});
    CHECK(n->log_has(" warn listener address passed over"));
    CHECK(n->log_has("address=192.0.2.1:0"));
    CHECK(n->log_has(" info listener takes IPv6 alone address=[::]:0"));
}

TEST_CASE("a server that starts with its standard descriptors closed opens none of its own there") {
    world w;
    process const server{{"/bin/sh", "-c", "exec " + binary() + " serve <&- >&- 2>&-"},
                         w.node_settings({{"PRESENCED_LISTEN", "127.0.0.1:0"}})};
    auto const leads_to = [&](int fd) {
        std::string to(64, '\0');
        auto const path = "/proc/" + std::to_string(server.pid()) + "/fd/" + std::to_string(fd);
        auto const n = readlink(path.c_str(), to.data(), to.size());
        to.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
        return to;
    };
    // It serves once the database knows it.
    REQUIRE(eventually([&] { return w.sql().value("SELECT count(*) FROM nodes") == "1"; }));
    for (auto const fd : {0, 1, 2}) {
        CHECK(leads_to(fd) == "/dev/null");
    }
}
