// The optional white space around elements of HTTP headers (RFC 7230 section 3.2.3).
#pragma once

#include <string_view>

namespace presenced::protocol {

// text without the spaces and tabs at its ends.
constexpr std::string_view trim(std::string_view text) noexcept {
    auto const first = text.find_first_not_of(" \t");
    if (first == std::string_view::npos) {
        return {};
    }
    return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

} // namespace presenced::protocol
