#include "bench/machine.hpp"

#include <libpq-fe.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include <unistd.h>

namespace presenced::bench {

namespace {

void add(pid_t process, process_figures& sum) {
    auto const home = "/proc/" + std::to_string(process);
    std::ifstream stat{home + "/stat"};
    std::string line;
    if (!std::getline(stat, line)) {
        return;
    }
    // The name in parentheses may hold anything, spaces too; utime and stime are fields 14 and 15.
    std::istringstream fields{line.substr(line.rfind(')') + 2)};
    std::string skipped;
    for (int i = 3; i < 14; ++i) {
        fields >> skipped;
    }
    double user = 0;
    double system = 0;
    fields >> user >> system;
    sum.cpu_seconds += (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
    std::ifstream memory{home + "/statm"};
    std::uint64_t size = 0;
    std::uint64_t resident = 0;
    memory >> size >> resident;
    sum.resident_bytes += resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    std::ifstream children{home + "/task/" + std::to_string(process) + "/children"};
    for (pid_t child = 0; children >> child;) {
        add(child, sum);
    }
}

} // namespace

process_figures look_at(pid_t process) {
    process_figures sum;
    add(process, sum);
    return sum;
}

void database::closer::operator()(void* link) const {
    PQfinish(static_cast<PGconn*>(link));
}

database::database(std::string const& url)
    : link_{PQconnectdb(url.c_str())} {
    auto* const link = static_cast<PGconn*>(link_.get());
    if (PQstatus(link) != CONNECTION_OK) {
        throw std::runtime_error{std::string{"cannot connect to the database: "} +
                                 PQerrorMessage(link)};
    }
}

std::string database::value(std::string const& sql) {
    auto* const link = static_cast<PGconn*>(link_.get());
    std::unique_ptr<PGresult, void (*)(PGresult*)> const result{PQexec(link, sql.c_str()),
                                                                &PQclear};
    auto const status = PQresultStatus(result.get());
    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
        throw std::runtime_error{PQerrorMessage(link)};
    }
    return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
}

double database::number(std::string const& sql) {
    auto const text = value(sql);
    return text.empty() ? 0 : std::stod(text);
}

// A session of PostgreSQL hands its counters in when it is idle, at most once a second, and a busy
// one only then: whoever asks for a difference waits a second first.
database::counters database::count() {
    counters now;
    now.commits = number("SELECT xact_commit FROM pg_stat_database "
                         "WHERE datname = current_database()");
    if (!value("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'").empty()) {
        now.statements = number("SELECT sum(calls) FROM pg_stat_statements s JOIN pg_database d "
                                "ON d.oid = s.dbid WHERE d.datname = current_database()");
    }
    now.wal_bytes = number("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn");
    now.updates = number("SELECT n_tup_upd FROM pg_stat_user_tables "
                         "WHERE relname = 'agent_subscriptions'");
    now.hot_updates = number("SELECT n_tup_hot_upd FROM pg_stat_user_tables "
                             "WHERE relname = 'agent_subscriptions'");
    return now;
}

double percentile(std::vector<double> const& sorted, double p) {
    if (sorted.empty()) {
        return 0;
    }
    auto const rank = std::ceil(p * static_cast<double>(sorted.size())) - 1;
    return sorted[static_cast<std::size_t>(
        std::clamp(rank, 0.0, static_cast<double>(sorted.size() - 1)))];
}

} // namespace presenced::bench
