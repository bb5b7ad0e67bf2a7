// Which faults happen when, to whom, for how long: all of it follows from the seed.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace presenced::tests {

struct fault {
    std::chrono::milliseconds at; // since the start
    std::string kind;
    int target; // number of a node or of a client process; 0 where there is only one
    std::chrono::milliseconds length;
    unsigned choice; // which rows, agents, clock
};

struct stage_size {
    int nodes;
    int processes;
    int tokens;
};

// Every kind comes once before any comes again. In order of time; all are over by `length`.
std::vector<fault> make_plan(unsigned seed, std::chrono::milliseconds length,
                             stage_size const& size);

} // namespace presenced::tests
