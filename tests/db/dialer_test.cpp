// Connecting: hosts that say nothing, lists of them, and a stop meanwhile.
#include "db/session/dialer.hpp"
#include "tests/db/node.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

using namespace presenced;
using namespace presenced::tests;

namespace {

// Takes connections and never says a word; once `full`, does not even take them.
struct black_hole {
    explicit black_hole(bool full)
        : listener{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)} {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t size = sizeof address;
        auto* const generic = reinterpret_cast<sockaddr*>(&address);
        if (::bind(listener, generic, size) != 0 || ::listen(listener, full ? 0 : 100) != 0 ||
            ::getsockname(listener, generic, &size) != 0) {
            throw std::runtime_error{"no black hole"};
        }
        port = ntohs(address.sin_port);
        for (int i = 0; full && i < 4; ++i) {
            clients.push_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
            ::connect(clients.back(), generic, size);
        }
    }
    ~black_hole() {
        for (int const fd : clients) {
            ::close(fd);
        }
        ::close(listener);
    }
    int listener;
    int port = 0;
    std::vector<int> clients;
};

} // namespace

TEST_CASE("connect: an empty item in a list of ports is the default port", "[db][connect]") {
    db::stop_signal stop;
    std::string problem;
    try {
        // Nobody listens on the first; should a server be there on the second, it knows no such
        // database.
        db::dial("host=127.0.0.1,127.0.0.1 port=1, dbname=presenced_no_such user=presenced_no_such",
                 stop);
    } catch (std::runtime_error const& e) {
        problem = e.what();
    }
    INFO(problem);
    CHECK(problem.find("port 5432") != std::string::npos);
}

TEST_CASE("connect: a host that says nothing is given up, and the next one tried",
          "[db][connect]") {
    world w;
    black_hole const hole{GENERATE(false, true)};
    auto const port = w.sql.value("SELECT current_setting('port')");
    auto const database = w.sql.value("SELECT current_database()");
    node a{"postgresql://postgres@127.0.0.1:" + std::to_string(hole.port) + ",127.0.0.1:" + port +
           "/" + database + "?connect_timeout=1&target_session_attrs=read-write"};
    REQUIRE(a.is_up(20s));
    CHECK(a.got(a.acquire(3, a.token()), lease_outcome::acquired));
}

TEST_CASE("connect: a database that says nothing is named, and holds up no stop", "[db][connect]") {
    black_hole const hole{GENERATE(false, true)};
    auto const port = std::to_string(hole.port);
    auto const at = "host=127.0.0.1,127.0.0.1 port=" + port + "," + port;
    node a{at + " connect_timeout=1"};
    REQUIRE(eventually([&] {
        return a.store->health().problem ==
               "no answer from 127.0.0.1 port " + port + " within 1000 ms";
    }));
    CHECK_FALSE(a.store->health().reachable);
    node b{at + " connect_timeout=600"};
    b.store->stop(std::chrono::steady_clock::now());
    // Before any of its threads came to the end of the time for a host, which is half a minute.
    auto const problem = b.store->health().problem;
    INFO(problem);
    CHECK(problem.find("no answer") == problem.npos);
}

TEST_CASE("stop: a database that is away does not hold it up, and what is left is counted",
          "[db][stop]") {
    postgres server;
    auto const conninfo = server.create_database();
    node a{conninfo};
    REQUIRE(a.is_up());
    server.freeze();
    a.release(3, a.token());
    a.release(4, a.token());
    auto const began = std::chrono::steady_clock::now();
    // While it hangs: two are left, and would not be if it had been waited for.
    CHECK(a.store->stop(began + 500ms) == 2);
    CHECK(a.store->stop(began) == 2);
    server.thaw();
}
