// How large a test that can be of any size is: ctest's size, or what the environment asks for.
#pragma once

#include <cstdlib>
#include <string>

namespace presenced::tests {

inline int scale(char const* variable, int otherwise) {
    auto const* const given = std::getenv(variable);
    return given != nullptr && *given != '\0' ? std::stoi(given) : otherwise;
}

} // namespace presenced::tests
