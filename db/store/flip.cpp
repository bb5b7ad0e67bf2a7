#include "db/store/flip.hpp"

#include "db/store/arrays.hpp"

#include <algorithm>

namespace presenced::db {

std::vector<flip> parse_flips(std::vector<std::string> const& texts) {
    std::vector<flip> flips;
    flips.reserve(texts.size());
    for (auto const& text : texts) {
        auto const first = std::min(text.find(' '), text.size());
        auto const second = std::min(text.find(' ', first + 1), text.size());
        auto const agent = text.substr(0, first);
        auto const state = std::string_view{text}.substr(std::min(first + 1, second),
                                                         second - std::min(first + 1, second));
        if (agent.empty() || agent.find_first_not_of("-0123456789") != agent.npos ||
            (state != "on" && state != "off") || second + 1 >= text.size()) {
            throw unreadable_answer{"a flip is not 'agent_id on|off reason'"};
        }
        flips.push_back({agent, state == "on", text.substr(second + 1)});
    }
    return flips;
}

} // namespace presenced::db
