// What a database thread does when it cannot be started, and when something in it throws.
#include "tests/db/node.hpp"

#include <atomic>
#include <new>
#include <stdexcept>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace presenced;
using namespace presenced::tests;

namespace {

// Throws from inside the database threads, wherever they report to it, while it is told to.
class broken_observer final : public db::observer {
public:
    void batch(std::string_view lane, std::size_t elements) override {
        if (!off_ && lane == failing && elements > 0) {
            ++thrown;
            throw std::bad_alloc{};
        }
    }
    void statement(std::string_view name, std::chrono::nanoseconds /*took*/,
                   bool /*succeeded*/) override {
        if (!off_ && name == failing_statement) {
            ++thrown;
            throw std::out_of_range{"a bug"};
        }
    }
    std::string failing;           // set before the store is made
    std::string failing_statement; // likewise

    void failing_off() { off_ = true; }
    std::atomic<int> thrown{0};

private:
    std::atomic<bool> off_{false};
};

db::postgres_options options_for(std::string const& conninfo) {
    db::postgres_options options;
    options.conninfo = as_server(conninfo);
    options.node = "a";
    options.boot_id = "a-boot";
    options.version = "test";
    options.timings = quick();
    return options;
}

// The limit on the threads of a user does not bind root, so this becomes somebody else first.
// Returns in the child what making a store says when so many threads may be started.
std::string made_with(unsigned threads) {
    int ends[2];
    if (::pipe(ends) != 0) {
        throw std::runtime_error{"no pipe"};
    }
    auto const child = ::fork();
    if (child == 0) {
        std::string said = "made";
        // A user id that runs nothing else: the child itself is the first of its tasks.
        rlimit const limit{1 + threads, 1 + threads};
        if (::setuid(61'234) != 0 || ::setrlimit(RLIMIT_NPROC, &limit) != 0) {
            said = "not root";
        } else {
            db::observer nobody;
            try {
                db::make_postgres_store(options_for("host=127.0.0.1 port=1"), nobody);
            } catch (std::exception const& e) {
                said = e.what();
            }
        }
        static_cast<void>(!::write(ends[1], said.data(), said.size()));
        ::_exit(0);
    }
    ::close(ends[1]);
    std::string said;
    char text[512];
    for (ssize_t n = 0; (n = ::read(ends[0], text, sizeof text)) > 0;) {
        said.append(text, static_cast<std::size_t>(n));
    }
    ::close(ends[0]);
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? said : "killed by signal " + std::to_string(WTERMSIG(status));
}

} // namespace

TEST_CASE("a database thread that cannot start: the store is not made, and says why", "[db]") {
    // The watchdog, the courier, two lanes, the busy lane, renewals, look-ups and the sweep.
    constexpr unsigned all = 8;
    if (made_with(all) == "not root") {
        return;
    }
    for (unsigned threads = 0; threads < all; ++threads) {
        auto const said = made_with(threads);
        INFO(threads << " threads: " << said);
        CHECK(said.find("cannot start a thread for the database") == 0);
        CHECK(said.find("TasksMax") != said.npos);
    }
    CHECK(made_with(all) == "made");
}

TEST_CASE("an exception in a database thread loses no request", "[db][fault]") {
    world w{quick()};
    for (auto const* lane : {"transition", "renewal", "lookup"}) {
        broken_observer broken;
        broken.failing = lane;
        inbox box;
        auto const store = db::make_postgres_store(options_for(w.conninfo), broken);
        INFO(lane);
        auto const agent = db::agent_id{3};
        lease_token const token = make_token(lane, 1);
        store->acquire({agent, 1, token, {}, &box, 1});
        store->renew({agent, token, &box, 2});
        store->authenticate({{}, &box, 3});
        CHECK(eventually([&] { return broken.thrown > 1; }));
        auto const is = [&](char const* other) {
            return std::string_view{lane} == other;
        };
        // The other threads go on.
        CHECK((is("transition") || eventually([&] { return !box.outcomes(1).empty(); })));
        CHECK((is("renewal") || eventually([&] { return !box.outcomes(2).empty(); })));
        CHECK((is("lookup") || eventually([&] { return !box.tokens().empty(); })));
        CHECK(broken.thrown < 100);
        broken.failing_off();
        CHECK(eventually([&] { return !box.outcomes(1).empty(); }));
        CHECK(eventually([&] { return !box.outcomes(2).empty(); }));
        CHECK(eventually([&] { return !box.tokens().empty(); }));
        CHECK(box.outcomes(1).size() == 1);
    }
}

TEST_CASE("an exception after the commit: the request is asked again, and done once",
          "[db][fault]") {
    world w{quick()};
    for (auto const* statement : {"transition", "renew", "sweep", "authenticate"}) {
        INFO(statement);
        broken_observer broken;
        broken.failing_statement = statement;
        inbox box;
        auto const store = db::make_postgres_store(options_for(w.conninfo), broken);
        lease_token const token = make_token(statement, 1);
        store->acquire({3, 1, token, {}, &box, 1});
        store->authenticate({{}, &box, 3});
        CHECK(eventually([&] { return broken.thrown > 1; }));
        broken.failing_off();
        CHECK(eventually([&] { return !box.outcomes(1).empty(); }));
        CHECK(eventually([&] { return !box.tokens().empty(); }));
        CHECK(box.outcomes(1) == std::vector{lease_outcome::acquired});
        CHECK(w.rows("token = '" + std::string{token.view()} + "'") == 1);
    }
}
