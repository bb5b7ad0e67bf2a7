#include "tests/db/node.hpp"

#include <thread>

using namespace presenced;
using namespace presenced::tests;

namespace {

// Sessions that notify in another database of the same server, and whose commits take their time
// to reach the disk. NOTIFY's lock is one for the whole server and is held through the flush, so
// that everybody else who notifies stands in line.
class slow_line {
public:
    slow_line(postgres& server, int sessions) {
        auto const conninfo = server.create_database(false);
        sql_session sql{conninfo};
        sql.query("CREATE TABLE noise (n integer)");
        for (int i = 0; i < sessions; ++i) {
            threads_.emplace_back([this, conninfo] {
                sql_session noisy{conninfo};
                noisy.query("SET commit_delay = 30000; SET commit_siblings = 0");
                while (!done_) {
                    noisy.query("BEGIN; INSERT INTO noise VALUES (1); NOTIFY noise; COMMIT");
                    ++commits_;
                }
            });
        }
    }
    ~slow_line() {
        done_ = true;
        for (auto& t : threads_) {
            t.join();
        }
    }
    int commits() const { return commits_; }

private:
    std::atomic<bool> done_{false};
    std::atomic<int> commits_{0};
    std::vector<std::thread> threads_;
};

} // namespace

TEST_CASE("a commit that has to stand in line for NOTIFY is not given up", "[db][commit_line]") {
    postgres server{{"fsync = on"}};
    world w{{}, server.create_database()};
    node a{w.conninfo};
    REQUIRE(a.is_up());
    auto const rolled_back = [&] {
        return w.sql.number("SELECT xact_rollback FROM pg_stat_database "
                            "WHERE datname = current_database()");
    };
    slow_line line{server, 20};
    REQUIRE(eventually([&] { return line.commits() > 20; }));
    w.sql.query("SELECT pg_stat_clear_snapshot()");
    auto const before = rolled_back();
    std::vector<lease_token> tokens;
    for (int i = 0; i < 50; ++i) {
        tokens.push_back(a.token());
        a.acquire(i % 9 + 1, tokens.back());
    }
    CHECK(eventually([&] { return a.box.count(lease_outcome::acquired) == 50; }, 8s));
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        a.release(static_cast<db::agent_id>(i % 9 + 1), tokens[i]);
    }
    CHECK(eventually([&] { return a.box.count(lease_outcome::released) == 50; }, 8s));
    // The sweep notifies, too.
    w.sql.query("INSERT INTO agent_subscriptions (agent_id, token) VALUES (4, 'by hand')");
    CHECK(eventually([&] { return w.flag(4); }, 12s));
    CHECK(a.failures.of("transition") == 0);
    CHECK(a.failures.of("sweep") == 0);
    CHECK(eventually([&] { return rolled_back() >= before; }));
    CHECK(rolled_back() == before);
}
