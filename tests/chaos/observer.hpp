// Looks at the database as other programs do: a snapshot after the other, and every NOTIFY.
#pragma once

#include "tests/chaos/history.hpp"
#include "tests/support/postgres.hpp"

#include <atomic>
#include <map>
#include <string>
#include <thread>

namespace presenced::tests {

// Runs on a thread of its own from construction to destruction. What has not changed since the
// snapshot before is not written again, so that an hour stays small.
class observer {
public:
    observer(history& log, std::string conninfo, milliseconds every);
    ~observer();

    long snapshots() const { return snapshots_; }

private:
    struct lease {
        std::string last_seen;
        long snapshot;
    };

    void run();
    void look(sql_session& sql);
    void forget_old_flips(long newest);

    history& log_;
    std::string conninfo_;
    milliseconds every_;
    // As of the last snapshot; the thread's only.
    std::map<std::string, lease> leases_;
    std::map<std::string, long> flags_;
    std::map<long, long> flips_; // seen, and in which snapshot
    std::string clock_;
    std::atomic<long> snapshots_{0};
    std::atomic<bool> stop_{false};
    std::thread thread_;
};

} // namespace presenced::tests
