// What a scenario cost: processor time and memory of processes, and what PostgreSQL has counted.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <sys/types.h>

namespace presenced::bench {

// A process and its descendants at one moment; zero when it is gone.
struct process_figures {
    double cpu_seconds = 0;
    std::uint64_t resident_bytes = 0;
};
process_figures look_at(pid_t process);

// A session on the database under test, for questions. Throws std::runtime_error.
class database {
public:
    explicit database(std::string const& url);

    // The first column of the first row, empty when there is none.
    std::string value(std::string const& sql);
    double number(std::string const& sql);

    // Totals of this database, all sessions' counters flushed as far as PostgreSQL lets one.
    struct counters {
        double commits = 0;
        double statements = 0; // through pg_stat_statements; 0 without it
        double wal_bytes = 0;
        double updates = 0; // of agent_subscriptions
        double hot_updates = 0;
    };
    counters count();

private:
    struct closer {
        void operator()(void* link) const;
    };
    std::unique_ptr<void, closer> link_;
};

// The p-th of sorted values, 0 <= p <= 1; 0 when there is none.
double percentile(std::vector<double> const& sorted, double p);

} // namespace presenced::bench
