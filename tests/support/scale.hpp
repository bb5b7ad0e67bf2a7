// How large a test that can be of any size is: ctest's size, or what the environment asks for.
#pragma once

#include <cstdlib>
#include <string>

namespace presenced::tests {

inline int scale(char const* variable, int otherwise) {
    auto const* const given = std::getenv(variable);
    return given != nullptr && *given != '\0' ? std::stoi(given) : otherwise;
}

// With PRESENCED_E2E_FULL=1 tests of faults run at the default timings and in full size, which
// takes minutes each; otherwise at a tenth.
inline bool is_full_size() {
    return scale("PRESENCED_E2E_FULL", 0) != 0;
}

} // namespace presenced::tests
