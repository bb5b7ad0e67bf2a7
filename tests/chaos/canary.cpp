#include "tests/chaos/canary.hpp"

#include "tests/support/postgres.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <stdexcept>

namespace presenced::tests {

namespace {

namespace fs = std::filesystem;

// Less is not worth a line.
constexpr double worth_noting = 0.02;

// Nanoseconds that each of its threads has waited for a processor so far.
std::map<std::string, long> waited_by_thread(pid_t pid) {
    std::map<std::string, long> waited;
    std::error_code gone;
    for (auto const& entry :
         fs::directory_iterator{"/proc/" + std::to_string(pid) + "/task", gone}) {
        std::ifstream file{entry.path() / "schedstat"};
        long ran = 0;
        long wait = 0;
        if (file >> ran >> wait) {
            waited[entry.path().filename()] = wait;
        }
    }
    return waited;
}

} // namespace

canary::canary(history& log, std::string conninfo)
    : log_{log}
    , conninfo_{std::move(conninfo)} {
    threads_.emplace_back([this] { sleep_and_wake(); });
    threads_.emplace_back([this] { read_schedules(); });
    threads_.emplace_back([this] { commit(); });
}

canary::~canary() {
    stop_ = true;
    for (auto& t : threads_) {
        t.join();
    }
}

void canary::watch(std::string const& who, pid_t pid) {
    std::lock_guard const lock{mutex_};
    watched_[who] = pid;
}

void canary::sleep_and_wake() {
    while (!stop_) {
        auto const due = steady::now() + 10ms;
        std::this_thread::sleep_until(due);
        auto const late = std::chrono::duration<double>(steady::now() - due).count();
        if (late > worth_noting) {
            log_.write("stall", log_.seconds(due), {{"who", "driver"}, {"for", late}});
        }
    }
}

void canary::read_schedules() {
    std::map<std::string, std::pair<pid_t, std::map<std::string, long>>> before;
    while (!stop_) {
        auto const began = log_.now();
        std::this_thread::sleep_for(100ms);
        std::map<std::string, pid_t> watched;
        {
            std::lock_guard const lock{mutex_};
            watched = watched_;
        }
        for (auto const& [who, pid] : watched) {
            if (pid == 0) {
                continue;
            }
            auto now = waited_by_thread(pid);
            auto& last = before[who];
            double longest = 0;
            if (last.first == pid) {
                for (auto const& [thread, wait] : now) {
                    longest =
                        std::max(longest, static_cast<double>(wait - last.second[thread]) / 1e9);
                }
            }
            last = {pid, std::move(now)};
            if (longest > worth_noting) {
                log_.write("stall", began, {{"who", who}, {"for", longest}});
            }
        }
    }
}

void canary::commit() {
    std::optional<sql_session> sql;
    while (!stop_) {
        auto const began = steady::now();
        auto const note = [&] {
            auto const took = std::chrono::duration<double>(steady::now() - began).count();
            if (took > worth_noting) {
                log_.write("stall", log_.seconds(began), {{"who", "db"}, {"for", took}});
            }
        };
        try {
            if (!sql) {
                sql.emplace(conninfo_);
                sql->query("CREATE TABLE IF NOT EXISTS chaos_canary (one int PRIMARY KEY, "
                           "sang_at timestamptz)");
                continue;
            }
            sql->query("INSERT INTO chaos_canary VALUES (1, now()) "
                       "ON CONFLICT (one) DO UPDATE SET sang_at = excluded.sang_at");
            note();
        } catch (std::runtime_error const&) { // the database is away
            if (sql) {
                note(); // it may have stalled before
            }
            sql.reset();
        }
        std::this_thread::sleep_until(began + 50ms);
    }
}

} // namespace presenced::tests
