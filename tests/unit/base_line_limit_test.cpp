#include "base/line_limit.hpp"
#include "tests/support/catch.hpp"

using namespace presenced::base;
using namespace std::chrono_literals;

TEST_CASE("so many lines a second are written, and the next says how many were not") {
    line_limit limit{2};
    std::chrono::steady_clock::time_point const start{1'000s};
    CHECK(limit.admit(start) == "");
    CHECK(limit.admit(start + 100ms) == "");
    for (auto i = 0; i < 3; ++i) {
        CHECK_FALSE(limit.admit(start + 200ms));
    }
    CHECK(limit.admit(start + 1s) == " suppressed=3");
    CHECK(limit.admit(start + 1s) == "");
    CHECK_FALSE(limit.admit(start + 1'999ms));
    CHECK(limit.admit(start + 1h) == " suppressed=1");
}
