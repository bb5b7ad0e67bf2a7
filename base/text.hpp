// Text as everybody here cuts, prints and shows it. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace presenced::base {

// What C's isspace() calls white space.
inline constexpr std::string_view white_space = " \t\r\n\f\v";
// The optional white space around the elements of HTTP fields (RFC 9110 section 5.6.3).
inline constexpr std::string_view blanks = " \t";

// `text` without the characters of `space` at its ends.
constexpr std::string_view trim(std::string_view text,
                                std::string_view space = white_space) noexcept {
    auto const first = text.find_first_not_of(space);
    if (first == std::string_view::npos) {
        return {};
    }
    return text.substr(first, text.find_last_not_of(space) - first + 1);
}

// Lower case for ASCII letters; every other byte stays.
std::string lower(std::string_view text);
// Whether two texts are equal without regard to the case of ASCII letters.
bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept;

// Two lower-case digits a byte.
std::string hex(std::span<std::uint8_t const> bytes);

// `text` fit for a terminal and for a line of the log. What a peer, a row or an application
// supplies may hold characters that move the cursor, end the line or change its direction; each
// becomes its escape: `\u001b` for control characters (C0, DEL, C1), for line and paragraph
// separators, and for the invisible ones (bidi marks, zero-width characters, tags), `\xff` for a
// byte that is not UTF-8. Everything else stays. The result is UTF-8. A JSON string stays one with
// the same value, for what JSON itself must escape is escaped already, and `\u` is an escape of
// JSON.
std::string printable(std::string_view text);

// The first `width` characters of UTF-8 text, and `...` when there are more.
std::string shortened(std::string_view text, std::size_t width);
// How many characters UTF-8 text has.
std::size_t character_count(std::string_view text) noexcept;

} // namespace presenced::base
