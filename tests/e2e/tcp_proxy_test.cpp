// The bad path that other tests rely on is as bad as it says.
#include "tests/support/catch.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <system_error>

using namespace presenced::tests;
using boost::asio::ip::tcp;
using towards = tcp_proxy::towards;

namespace {

constexpr auto a_moment = 300ms;
constexpr char const* request = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

struct path {
    world w;
    std::unique_ptr<node> server = w.start_node();
    tcp_proxy proxy{server->port()};

    std::unique_ptr<cable> subscriber(std::int64_t agent) {
        auto options = w.client_options(*server);
        options.port = proxy.port();
        auto client = w.session(options);
        client->subscribe(identifier(agent));
        if (client->next() != "confirm " + identifier(agent)) {
            throw std::runtime_error{"not subscribed through the proxy"};
        }
        return client;
    }
    bool has_connections(std::size_t count) {
        return eventually([&] { return proxy.connections() == count; });
    }
};

} // namespace

TEST_CASE("a good path carries bytes and the ends of connections") {
    path p;
    CHECK(http_request(p.proxy.port(), "/healthz").status == 200);
    CHECK(p.has_connections(0));
    CHECK(p.proxy.delivered(towards::server) > 0);
    CHECK(p.proxy.delivered(towards::client) > 0);
    auto const agent = p.w.add_agent();
    auto const c = p.subscriber(agent);
    CHECK(p.proxy.connections() == 1);
    c->kill();
    CHECK(p.w.becomes_active(agent, false, 1s));
    CHECK(p.has_connections(0));
}

TEST_CASE("a long path takes its time each way, and is no narrower") {
    path p;
    p.proxy.delay(a_moment, towards::server);
    p.proxy.delay(2 * a_moment, towards::client);
    raw_connection c{p.proxy.port()};
    auto const start = steady::now();
    c.send(request);
    REQUIRE(eventually([&] { return since(start) >= a_moment / 3; }));
    auto const second = steady::now();
    c.send(request);
    REQUIRE(c.answer());
    CHECK(since(start) >= 3 * a_moment);
    REQUIRE(c.answer());
    CHECK(since(second) >= 3 * a_moment);
    CHECK(since(start) < 6 * a_moment); // one after the other they would need that
}

TEST_CASE("a black hole keeps both sockets open, tells nobody, and delivers when it is healed") {
    path p;
    auto const way = GENERATE(towards::server, towards::client, towards::both);
    raw_connection old{p.proxy.port()};
    auto const agent = p.w.add_agent();
    auto const ended = p.subscriber(agent);
    p.proxy.black_hole(way);
    old.send(request);
    raw_connection fresh{p.proxy.port()};
    fresh.send(request);
    CHECK_FALSE(old.answer(a_moment));
    CHECK_FALSE(fresh.answer(a_moment));
    CHECK_FALSE(old.ended(0ms));
    CHECK_FALSE(fresh.ended(0ms));
    if (way != towards::client) {
        ended->kill();
        CHECK(always([&] { return p.w.is_active(agent); }, a_moment));
    }
    p.proxy.heal();
    CHECK(old.answer());
    CHECK(fresh.answer());
    if (way != towards::client) {
        CHECK(p.w.becomes_active(agent, false, 1s));
    }
}

TEST_CASE("a cut path resets both ends, and takes new connections") {
    path p;
    auto const agent = p.w.add_agent();
    auto const c = p.subscriber(agent);
    p.proxy.cut();
    CHECK(c->next() == "closed 1006");
    CHECK(p.w.becomes_active(agent, false, 1s));
    CHECK(p.proxy.connections() == 0);
    CHECK_NOTHROW(p.subscriber(agent));
}

TEST_CASE("a path that refuses is refused until it is healed") {
    path p;
    raw_connection old{p.proxy.port()};
    auto const heir = p.w.start_node(); // holds nothing open that is the proxy's
    p.proxy.refuse();
    CHECK(old.ended());
    CHECK_THROWS_AS(raw_connection{p.proxy.port()}, std::system_error);
    // Nobody else gets the port meanwhile.
    boost::asio::io_context context;
    tcp::endpoint const there{boost::asio::ip::address_v4::loopback(), p.proxy.port()};
    CHECK_THROWS_AS((tcp::acceptor{context, there, false}), boost::system::system_error);
    p.proxy.heal();
    CHECK(http_request(p.proxy.port(), "/healthz").status == 200);
}
