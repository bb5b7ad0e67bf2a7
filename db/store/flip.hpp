// A change of a routing flag, as the functions of the schema report it.
// Any thread; libpqxx stays out of here.
#pragma once

#include <string>
#include <vector>

namespace presenced::db {

struct flip {
    std::string agent;
    bool active;
    std::string reason;
};

// Reads the elements of the column `flips`, each 'agent_id on|off reason'. Throws unreadable_answer
// (db/store/arrays.hpp).
std::vector<flip> parse_flips(std::vector<std::string> const& texts);

} // namespace presenced::db
