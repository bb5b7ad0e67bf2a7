// Commits that wait for a standby.
#pragma once

#include "tests/db/node.hpp"

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>

namespace presenced::tests {

// While one lives, every commit waits for a standby that never comes: it is done, and its client
// does not know.
struct waiting_commit {
    explicit waiting_commit(world& where)
        : w{where} {
        w.sql.query("SET synchronous_commit = local");
        w.sql.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        w.sql.query("SELECT pg_reload_conf()");
        await_standbys();
    }
    ~waiting_commit() { end(); }
    // The server takes its new configuration when it comes to it: until then commits wait for
    // nobody. A commit of another session shows when it has.
    void await_standbys() {
        std::atomic<bool> done{false};
        std::thread committer{[&] {
            sql_session other{w.conninfo};
            while (!done) {
                other.query("SELECT pg_logical_emit_message(true, 'probe', '')");
            }
        }};
        constexpr auto waiting = "FROM pg_stat_activity WHERE datname = current_database() AND "
                                 "wait_event = 'SyncRep' AND query LIKE '%logical_emit%'";
        auto const does = eventually(
            [&] { return w.sql.number(std::string{"SELECT count(*) "} + waiting) == 1; });
        done = true;
        w.sql.query(std::string{"SELECT pg_cancel_backend(pid) "} + waiting);
        committer.join();
        if (!does) {
            throw std::runtime_error{"commits do not wait for standbys"};
        }
    }
    pid_t backend() {
        std::vector<pid_t> pids;
        if (!eventually([&] {
                pids =
                    w.backends("wait_event = 'SyncRep' AND query LIKE '%presenced_transition(%'");
                return !pids.empty();
            })) {
            throw std::runtime_error{"no commit waits for a standby"};
        }
        return pids.front();
    }
    void end() {
        w.sql.query("ALTER SYSTEM RESET synchronous_standby_names");
        w.sql.query("SELECT pg_reload_conf()");
    }
    world& w;
};

} // namespace presenced::tests
