// A change of a routing flag, as the functions of the schema report it.
// Any thread; libpqxx stays out of here.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

struct flip {
    std::string agent;
    bool active;
    std::string reason;
};

// Reads the column `flips`: an array of 'agent_id on|off reason'.
std::vector<flip> parse_flips(std::string_view column);

} // namespace presenced::db
