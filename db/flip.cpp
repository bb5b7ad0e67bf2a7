#include "db/flip.hpp"

#include "db/arrays.hpp"

namespace presenced::db {

std::vector<flip> parse_flips(std::string_view column) {
    std::vector<flip> flips;
    for (auto const& text : parse_array(column)) {
        auto const first = text.find(' ');
        auto const second = text.find(' ', first + 1);
        flips.push_back({text.substr(0, first),
                         std::string_view{text}.substr(first + 1, second - first - 1) == "on",
                         text.substr(second + 1)});
    }
    return flips;
}

} // namespace presenced::db
