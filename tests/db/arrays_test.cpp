#include "db/store/arrays.hpp"
#include "tests/support/catch.hpp"

#include <stdexcept>

using namespace presenced::db;

TEST_CASE("an array literal quotes what PostgreSQL would take for syntax", "[arrays]") {
    array_literal a;
    a.add("plain");
    a.add("NULL");
    a.add(R"(a"b\c,{}d)");
    a.add("");
    a.add_null();
    a.add(std::int64_t{-7});
    CHECK(a.take() == R"({"plain","NULL","a\"b\\c,{}d","",NULL,-7})");
    CHECK(array_literal{}.take() == "{}");
}

TEST_CASE("an array as PostgreSQL prints it is read back", "[arrays]") {
    CHECK(parse_array("{}").empty());
    CHECK(parse_array(R"({acquired,"7 on subscribed","a\"b\\c,{}",NULL,"NULL",""})") ==
          std::vector<std::string>{"acquired", "7 on subscribed", R"(a"b\c,{})", "", "NULL", ""});
    CHECK_THROWS_AS(parse_array("x"), unreadable_answer);
    CHECK_THROWS_AS(parse_array(R"({"x})"), unreadable_answer);
    CHECK_THROWS_AS(parse_array(R"({"x"y})"), unreadable_answer);
    CHECK_THROWS_AS(parse_array("{{a,b}}"), unreadable_answer);
}
