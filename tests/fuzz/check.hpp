// check(): what must hold for every input. Not assert(), which a release build leaves out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

inline void check(bool holds) {
    if (!holds) {
        std::abort();
    }
}
