// What the machine itself cost: how late a sleeping thread wakes up, how long the threads of a node
// waited for a processor, how long a small commit took. The checker gives deadlines that much more,
// and nothing else.
#pragma once

#include "tests/chaos/history.hpp"

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace presenced::tests {

// Three threads from construction to destruction.
class canary {
public:
    canary(history& log, std::string conninfo);
    ~canary();

    // Processes to look at, by the name that their stalls get; pid 0: none now.
    void watch(std::string const& who, pid_t pid);

private:
    void sleep_and_wake();
    void read_schedules();
    void commit();

    history& log_;
    std::string conninfo_;
    std::mutex mutex_;
    std::map<std::string, pid_t> watched_;
    std::atomic<bool> stop_{false};
    std::vector<std::thread> threads_;
};

} // namespace presenced::tests
