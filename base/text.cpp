#include "base/text.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

namespace presenced::base {

namespace {

constexpr std::string_view digits = "0123456789abcdef";

char lower(char c) noexcept {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

struct character {
    char32_t code = 0;
    std::size_t length = 0; // in bytes; 0: no UTF-8
};

// The character at the front of `text`, by the table of RFC 3629 section 4.
character decode(std::string_view text) noexcept {
    auto const byte = [&](std::size_t i) {
        return static_cast<unsigned char>(text[i]);
    };
    auto const lead = byte(0);
    std::size_t const length = lead < 0x80   ? 1
                               : lead < 0xc2 ? 0
                               : lead < 0xe0 ? 2
                               : lead < 0xf0 ? 3
                               : lead < 0xf5 ? 4
                                             : 0;
    if (length <= 1 || text.size() < length) {
        return {lead, length == 1 ? 1U : 0U};
    }
    char32_t code = lead & (0x7fU >> length);
    for (std::size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xc0U) != 0x80U) {
            return {};
        }
        code = code << 6U | (byte(i) & 0x3fU);
    }
    auto const too_long = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    auto const surrogate = code >= 0xd800 && code < 0xe000;
    return too_long || surrogate || code > 0x10ffff ? character{} : character{code, length};
}

struct code_range {
    char32_t first;
    char32_t last;
};

// Unicode's controls (Cc), line and paragraph separators (Zl, Zp), and those format characters (Cf)
// that show nothing and change how what stands beside them is read.
constexpr std::array hidden{
    code_range{0x00, 0x1f},     code_range{0x7f, 0x9f},      code_range{0xad, 0xad},
    code_range{0x61c, 0x61c},   code_range{0x180e, 0x180e},  code_range{0x200b, 0x200f},
    code_range{0x2028, 0x202e}, code_range{0x2060, 0x206f},  code_range{0xfeff, 0xfeff},
    code_range{0xfff9, 0xfffb}, code_range{0xe0000, 0xe007f}};

bool is_hidden(char32_t code) noexcept {
    return std::any_of(hidden.begin(), hidden.end(),
                       [code](auto const& r) { return code >= r.first && code <= r.last; });
}

// As JSON writes it: beyond U+FFFF as two surrogates.
void append_escape(std::string& shown, char32_t code) {
    auto const append_unit = [&shown](std::uint32_t unit) {
        std::array<char, 8> escape{};
        std::snprintf(escape.data(), escape.size(), "\\u%04x", unit & 0xffffU);
        shown += escape.data();
    };
    if (code > 0xffff) {
        append_unit(0xd7c0U + (code >> 10U));
        append_unit(0xdc00U | (code & 0x3ffU));
    } else {
        append_unit(code);
    }
}

bool continues_character(char c) noexcept {
    return (static_cast<unsigned char>(c) & 0xc0U) == 0x80U;
}

} // namespace

std::string lower(std::string_view text) {
    std::string low{text};
    std::transform(low.begin(), low.end(), low.begin(), [](char c) { return lower(c); });
    return low;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) noexcept {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](char x, char y) { return lower(x) == lower(y); });
}

std::string hex(std::span<std::uint8_t const> bytes) {
    std::string text;
    text.reserve(2 * bytes.size());
    for (auto const byte : bytes) {
        text += digits[byte >> 4U];
        text += digits[byte & 15U];
    }
    return text;
}

std::string printable(std::string_view text) {
    std::string shown;
    shown.reserve(text.size());
    while (!text.empty()) {
        auto const [code, length] = decode(text);
        if (length == 0) {
            auto const byte = static_cast<unsigned char>(text.front());
            shown.append("\\x").append(1, digits[byte >> 4U]).append(1, digits[byte & 15U]);
        } else if (is_hidden(code)) {
            append_escape(shown, code);
        } else {
            shown += text.substr(0, length);
        }
        text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return shown;
}

std::string shortened(std::string_view text, std::size_t width) {
    std::size_t characters = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (!continues_character(text[i]) && ++characters > width) {
            return std::string{text.substr(0, i)} + "...";
        }
    }
    return std::string{text};
}

std::size_t character_count(std::string_view text) noexcept {
    return text.size() -
           static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues_character));
}

} // namespace presenced::base
