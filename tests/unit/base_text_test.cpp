#include "base/text.hpp"
#include "base/time.hpp"
#include "tests/support/catch.hpp"

#include <array>

using namespace presenced::base;
using namespace std::chrono_literals;

TEST_CASE("text that anybody can read stays as it is") {
    for (std::string const text :
         {"", "plain", "with \"quotes\" and \\", "Grüße, 日本語, 🦀"}) {
        CHECK(printable(text) == text);
    }
}

TEST_CASE("characters that move a terminal's cursor become escapes") {
    CHECK(printable("\x1b[2J") == "\\u001b[2J");
    CHECK(printable("a\r\nb\tc") == "a\\u000d\\u000ab\\u0009c");
    CHECK(printable(std::string_view{"\0", 1}) == "\\u0000");
    CHECK(printable("\x7f") == "\\u007f");
    // U+009B is a CSI to a terminal that takes C1 controls.
    CHECK(printable("\xc2\x9b"
                    "2J") == "\\u009b2J");
    CHECK(printable("\xc2\x80\xc2\x9f\xc2\xa0") == "\\u0080\\u009f\xc2\xa0");
}

TEST_CASE("characters that reorder or hide text become escapes") {
    CHECK(printable("\u202e"
                    "evil") == "\\u202eevil");
    CHECK(printable("\u2066\u2067\u2068\u2069") == "\\u2066\\u2067\\u2068\\u2069");
    CHECK(printable("\u200e\u200f\u061c") == "\\u200e\\u200f\\u061c");
    CHECK(printable("a\u200b\u200c\u200d\u2060\ufeff"
                    "b") == "a\\u200b\\u200c\\u200d\\u2060\\ufeffb");
    CHECK(printable("one\u2028two\u2029three") == "one\\u2028two\\u2029three");
    CHECK(printable("\U000e0041") == "\\udb40\\udc41");
}

TEST_CASE("a byte that is not UTF-8 becomes its number") {
    CHECK(printable("\xff\xfe") == "\\xff\\xfe");
    CHECK(printable("\x9b") == "\\x9b");                            // C1 as one byte (ISO 8859)
    CHECK(printable("a\xc3") == "a\\xc3");                          // cut off
    CHECK(printable("\xc0\x9b") == "\\xc0\\x9b");                   // overlong
    CHECK(printable("\xe0\x82\x9b") == "\\xe0\\x82\\x9b");          // overlong
    CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");          // a surrogate
    CHECK(printable("\xf4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80"); // beyond U+10FFFF
    CHECK(printable("\xc3(") == "\\xc3(");
}

TEST_CASE("long text is cut between characters") {
    CHECK(shortened("日本語", 3) == "日本語");
    CHECK(shortened("日本語", 2) == "日本...");
    CHECK(character_count("日本語") == 3);
}

TEST_CASE("white space is taken off both ends only") {
    CHECK(trim(" \t a b \r\n") == "a b");
    CHECK(trim(" \n ") == "");
    CHECK(trim(" \na ", blanks) == "\na");
}

TEST_CASE("bytes are shown as two digits each") {
    std::array<std::uint8_t, 3> const bytes{0x00, 0x0f, 0xa5};
    CHECK(hex(bytes) == "000fa5");
}

TEST_CASE("case is ignored for ASCII letters alone") {
    CHECK(equal_ignoring_case("WebSocket", "websocket"));
    CHECK_FALSE(equal_ignoring_case("websocket", "websockets"));
    CHECK_FALSE(equal_ignoring_case("Ä", "ä"));
    CHECK(lower("ABCxyz-Ä") == "abcxyz-Ä");
}

TEST_CASE("an age is shown in the two units that say most") {
    CHECK(show_age(0ms) == "0.0s");
    CHECK(show_age(59'990ms) == "59.9s");
    CHECK(show_age(200s) == "3m 20s");
    CHECK(show_age(5h + 12min + 59s) == "5h 12m");
    CHECK(show_age(219h + 59min) == "9d 3h");
}
