// What a session costs, in figures that do not depend on the machine: allocations, bytes, wake-ups,
// transactions, statements, HOT updates. They fail on a regression that a benchmark would only show
// to whoever runs one. Instructions would say more, but need a processor's counters, which virtual
// machines lack, or callgrind and a second build without sanitizers; allocations follow them.
//
// Bounds stand a tenth or more above what was measured when they were set, which stands beside
// them.
#include "bench/instant_store.hpp"
#include "bench/swarm.hpp"
#include "server/app/listener.hpp"
#include "server/app/shard.hpp"
#include "server/http/routes.hpp"
#include "server/node/node.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <boost/asio/executor_work_guard.hpp>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

#include <time.h>

// Of every sanitizer's allocator; g++ has the functions and not their header.
extern "C" {
std::size_t __sanitizer_get_current_allocated_bytes();
int __sanitizer_install_malloc_and_free_hooks(void (*)(void const volatile*, std::size_t),
                                              void (*)(void const volatile*));
}

using namespace presenced;
using namespace presenced::tests;

namespace {

std::atomic<std::size_t> allocations{0};
thread_local bool is_client = false;

void count_allocation(void const volatile*, std::size_t) {
    if (!is_client) {
        allocations.fetch_add(1, std::memory_order_relaxed);
    }
}
void ignore_free(void const volatile*) {}

// The server without its database, in this process, on one shard.
class in_process_server {
public:
    explicit in_process_server(environment const& variables)
        : settings_{server::parse_config(source(variables))}
        , figures_{"test", "test"}
        , node_{settings_, figures_, 20'000}
        , store_{bench::instant().open({}, figures_)} {
        node_.store.store(store_.get());
        node_.phase.store(server::node_phase::serving);
        shards_.push_back(std::make_unique<server::shard>(node_, routes_));
        listener_ = std::make_unique<server::listener>(context_, shards_);
        auto const bound = listener_->listen(settings_.listen).front();
        url_ = "ws://" + bound + "/cable";
        shards_.front()->start();
        listener_->start();
        thread_ = std::thread{[this] {
            context_.run();
        }};
    }
    ~in_process_server() {
        context_.stop();
        thread_.join();
        shards_.front()->stop();
    }
    bench::target target() const { return bench::target::parse(url_); }

private:
    static server::config_source source(environment const& variables) {
        server::config_source from;
        from.environment = {variables.begin(), variables.end()};
        from.environment["PRESENCED_LISTEN"] = "127.0.0.1:0";
        from.environment["PRESENCED_THREADS"] = "1";
        from.environment["DATABASE_URL"] = "dbname=none";
        from.host_name = "test";
        return from;
    }

    server::config settings_;
    server::metrics figures_;
    server::node node_;
    server::router const routes_{server::make_routes(settings_)};
    std::unique_ptr<db::store> store_;
    std::vector<std::unique_ptr<server::shard>> shards_;
    boost::asio::io_context context_{1};
    std::unique_ptr<server::listener> listener_;
    std::string url_;
    std::thread thread_;
};

struct cost {
    double allocations;
    double bytes;
    double microseconds; // of processor time, server and client
};

double processor_seconds() {
    timespec t{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

bool come_in(bench::swarm& all, std::size_t from, std::size_t to) {
    for (auto i = from; i < to; ++i) {
        all.start(i);
    }
    return all.run([&] { return all.now().confirmed + all.now().failed >= to; },
                   steady::now() + 60s) &&
           all.now().confirmed == to;
}

// Of sessions `from` to `to`, each from connect() to its confirmation.
cost cost_of(bench::swarm& all, std::size_t from, std::size_t to) {
    auto const count = allocations.load();
    auto const bytes = __sanitizer_get_current_allocated_bytes();
    auto const time = processor_seconds();
    REQUIRE(come_in(all, from, to));
    auto const sessions = static_cast<double>(to - from);
    return {static_cast<double>(allocations.load() - count) / sessions,
            static_cast<double>(__sanitizer_get_current_allocated_bytes() - bytes) / sessions,
            (processor_seconds() - time) * 1e6 / sessions};
}

// How often the threads of a process have gone to sleep, by themselves.
std::uint64_t sleeps(pid_t process) {
    constexpr std::string_view label = "voluntary_ctxt_switches:";
    std::uint64_t all = 0;
    for (auto const& thread :
         std::filesystem::directory_iterator{"/proc/" + std::to_string(process) + "/task"}) {
        std::ifstream lines{thread.path() / "status"};
        for (std::string line; std::getline(lines, line);) {
            if (line.rfind(label, 0) == 0) {
                all += std::stoull(line.substr(label.size()));
            }
        }
    }
    return all;
}

double wake_ups_a_second(pid_t process, std::chrono::seconds time) {
    auto const before = sleeps(process);
    auto const begin = steady::now();
    std::this_thread::sleep_for(time);
    return static_cast<double>(sleeps(process) - before) /
           std::chrono::duration<double>(steady::now() - begin).count();
}

std::vector<bench::identity> one_of_each(std::size_t count) {
    std::vector<bench::identity> all;
    for (std::size_t i = 1; i <= count; ++i) {
        all.push_back({"token-" + std::to_string(i), std::to_string(i)});
    }
    return all;
}

} // namespace

TEST_CASE("a session costs few allocations and little memory, however many there are") {
    is_client = true;
    __sanitizer_install_malloc_and_free_hooks(&count_allocation, &ignore_free);
    raise_descriptor_limit();
    in_process_server server{timings(1, 1)};
    bench::swarm all{server.target(), one_of_each(4'000), 4'000};
    REQUIRE(come_in(all, 0, 200)); // what the first ones bring into being once for all

    auto const few = cost_of(all, 200, 1'000);
    auto const many = cost_of(all, 1'000, 4'000);
    std::cout << "a session: " << many.allocations << " allocations, " << many.bytes << " bytes, "
              << many.microseconds << " us (the first thousand: " << few.allocations << ", "
              << few.bytes << ", " << few.microseconds << ")\n";
    CHECK(many.allocations < 66); // 59
    CHECK(many.bytes < 4'500);    // 4,066
    // Nor does a session cost the more the more there are.
    CHECK(many.allocations < 1.1 * few.allocations);
    CHECK(many.bytes < 1.1 * few.bytes);
}

TEST_CASE("a ping costs a few small allocations") {
    is_client = true;
    __sanitizer_install_malloc_and_free_hooks(&count_allocation, &ignore_free);
    in_process_server server{timings(1, 10)};
    bench::swarm all{server.target(), one_of_each(500), 500};
    REQUIRE(come_in(all, 0, 500));
    all.run([] { return false; }, steady::now() + 500ms);

    auto const count = allocations.load();
    auto const pings = all.now().pings;
    REQUIRE(all.run([&] { return all.now().pings - pings >= 5'000; }, steady::now() + 60s));
    auto const each = static_cast<double>(allocations.load() - count) / 5'000;
    std::cout << "a ping with its share of native pings and renewals: " << each << " allocations\n";
    CHECK(each < 5); // 4.0
}

TEST_CASE("a node with little to do sleeps") {
    world w{timings(1, 1)};
    auto const n = w.start_node({{"PRESENCED_THREADS", "2"}});
    auto const alone = wake_ups_a_second(n->pid(), 3s);

    auto const agents = w.add_agents(40);
    std::vector<std::unique_ptr<cable>> sessions;
    for (auto const agent : agents) {
        sessions.push_back(w.session(*n));
        sessions.back()->subscribe(identifier(agent));
    }
    REQUIRE(eventually([&] {
        return n->metric("presenced_subscriptions{state=\"confirmed\"}") ==
               static_cast<double>(agents.size());
    }));
    auto const with_sessions = wake_ups_a_second(n->pid(), 6s);
    std::cout << "wake-ups a second: " << alone << " alone, " << with_sessions
              << " with 40 sessions\n";
    CHECK(alone < 30);         // 11; with TSan, which has a thread of its own, 20
    CHECK(with_sessions < 40); // 18; 28
}

TEST_CASE("subscribes that wait share transactions, renewals share statements and are HOT") {
    constexpr std::size_t connections = 10;
    constexpr std::size_t each = 100;
    world w{a_tenth()};
    auto const n = w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    auto const agents = w.add_agents(connections * each);
    std::vector<std::unique_ptr<cable>> sessions;
    for (std::size_t i = 0; i < connections; ++i) {
        sessions.push_back(w.session(*n));
    }
    auto const batches = [&] {
        return n->metric("presenced_batch_size_count{lane=\"transition\"}");
    };
    auto const before = batches();
    postgres::shared().freeze();
    for (std::size_t i = 0; i < agents.size(); ++i) {
        sessions[i % connections]->subscribe(identifier(agents[i]));
    }
    // All of them, or those that the node has yet to read go out a few at a time.
    auto const queued = eventually([&] {
        return n->metric("presenced_subscriptions{state=\"pending\"}") == connections * each;
    });
    postgres::shared().thaw();
    REQUIRE(queued);
    auto const confirmed = [&] {
        return n->metric("presenced_subscriptions{state=\"confirmed\"}") == connections * each;
    };
    REQUIRE(eventually(confirmed));
    std::cout << "1,000 subscribes that waited: " << batches() - before << " transactions\n";
    CHECK(batches() - before < 14); // 8

    auto const renewed = [&] {
        return n->metric("presenced_renewals_total{result=\"renewed\"}");
    };
    auto const statements = [&] {
        return n->metric("presenced_database_seconds_count{statement=\"renew\"}");
    };
    auto const wal = [&] {
        return w.sql().number("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn");
    };
    auto const first = renewed();
    auto const first_statement = statements();
    auto const first_byte = wal();
    REQUIRE(eventually([&] { return renewed() - first >= 3 * connections * each; }, 30s));
    auto const rows = renewed() - first;
    auto const wal_bytes = static_cast<double>(wal() - first_byte) / rows;
    std::cout << "a renewal: " << (statements() - first_statement) / rows << " statements, "
              << wal_bytes << " bytes of WAL\n";
    CHECK(statements() - first_statement < rows / 10); // rows / 50
    CHECK(wal_bytes < 250);                            // 94

    // By one session alone: with others, one that is held up while it looks at the rows keeps their
    // old versions from being pruned, which is the machine's doing.
    n->signal(SIGKILL);
    REQUIRE(n->wait());
    REQUIRE(eventually([&] { // what they counted is in the statistics then
        return w.sql().number("SELECT count(*) FROM pg_stat_activity WHERE datname = "
                              "current_database() AND application_name = 'presenced'") == 0;
    }));
    auto const updates = [&](std::string const& which) {
        return w.sql().number("SELECT " + which +
                              " FROM pg_stat_user_tables WHERE relname = "
                              "'agent_subscriptions'");
    };
    auto const settled = [&] {
        w.sql().query("SELECT pg_stat_force_next_flush()");
        return updates("n_tup_upd");
    };
    auto const old_updates = settled();
    auto const old_hot_updates = updates("n_tup_hot_upd");
    for (int round = 0; round < 10; ++round) {
        w.sql().query("SELECT presenced_renew(array_agg(agent_id ORDER BY token), "
                      "array_agg(token ORDER BY token), false, '', '', '', NULL, '{}') "
                      "FROM agent_subscriptions");
    }
    auto const made = 10 * static_cast<long>(agents.size());
    REQUIRE(eventually([&] { return settled() - old_updates >= made; }));
    auto const hot = updates("n_tup_hot_upd") - old_hot_updates;
    std::cout << hot << " of " << made << " renewals are HOT\n";
    CHECK(hot * 100 >= made * 99);
}
