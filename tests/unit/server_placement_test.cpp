#include "server/app/placement.hpp"
#include "tests/support/catch.hpp"

#include <vector>

using presenced::server::place;

namespace {

std::vector<std::size_t> after(std::size_t connections, std::vector<std::size_t> loads,
                               std::size_t few) {
    for (; connections > 0; --connections) {
        ++loads[place(loads.size(), few, [&](std::size_t i) { return loads[i]; })];
    }
    return loads;
}

} // namespace

TEST_CASE("the first shard gets the first few connections, and then all get the same") {
    using loads = std::vector<std::size_t>;
    CHECK(after(100, {0, 0, 0}, 100) == loads{100, 0, 0});
    CHECK(after(101, {0, 0, 0}, 100) == loads{101, 0, 0});
    CHECK(after(150, {0, 0, 0}, 100) == loads{101, 49, 0});
    CHECK(after(301, {0, 0, 0}, 100) == loads{101, 101, 99});
    CHECK(after(600, {0, 0, 0}, 100) == loads{200, 200, 200});
    CHECK(after(9, {0, 0, 0}, 0) == loads{3, 3, 3});
    CHECK(after(5, {0}, 100) == loads{5});
}

TEST_CASE("a shard that many have left gets the next ones") {
    using loads = std::vector<std::size_t>;
    CHECK(after(50, {400, 150, 400}, 100) == loads{400, 200, 400});
    CHECK(after(50, {10, 150, 400}, 100) == loads{60, 150, 400});
}
