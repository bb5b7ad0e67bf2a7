#include "base/time.hpp"

namespace presenced::base {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

std::string show_duration(milliseconds d) {
    struct unit {
        milliseconds length;
        char const* name;
    };
    for (auto const& u : {unit{24h, "d"}, unit{1h, "h"}, unit{1min, "m"}, unit{1s, "s"}}) {
        // 120s stays 120s, to be compared with other seconds.
        if (d.count() != 0 && d % u.length == 0ms && (u.length != 1min || d >= 10min)) {
            return std::to_string(d / u.length) + u.name;
        }
    }
    return d.count() == 0 ? "0s" : std::to_string(d.count()) + "ms";
}

std::string show_age(milliseconds age) {
    auto const two = [age](milliseconds big, char const* name, milliseconds small,
                           char const* rest) {
        return std::to_string(age / big) + name + " " + std::to_string(age % big / small) + rest;
    };
    if (age >= 24h) {
        return two(24h, "d", 1h, "h");
    }
    if (age >= 1h) {
        return two(1h, "h", 1min, "m");
    }
    if (age >= 1min) {
        return two(1min, "m", 1s, "s");
    }
    return std::to_string(age / 1s) + "." + std::to_string(age % 1s / 100ms) + "s";
}

} // namespace presenced::base
