// Where the access token of a request is found.
#include "protocol/credentials.hpp"
#include "tests/support/catch.hpp"

#include <string>

using presenced::protocol::find_token;
using namespace std::string_literals;

TEST_CASE("the token is the query's token") {
    CHECK(find_token("/cable?token=abc", "") == "abc");
    CHECK(find_token("/cable?a=1&token=abc&b=2", "") == "abc");
    CHECK(find_token("http://host:8080/cable?token=abc", "") == "abc");
    CHECK(find_token("/cable?token=abc#x", "") == "abc");
    CHECK(find_token("/cable?token=a=b?c", "") == "a=b?c");
}

TEST_CASE("the token of the header counts when the query has none") {
    CHECK(find_token("/cable", "Bearer abc") == "abc");
    CHECK(find_token("/cable?", "Bearer abc") == "abc");
    CHECK(find_token("/cable?other=1", "bearer abc") == "abc");
    CHECK(find_token("/cable?token=", " BEARER \t abc=  ") == "abc=");
    CHECK(find_token("/cable?token", "Bearer abc") == "abc");
}

TEST_CASE("the query's token goes before the header's") {
    CHECK(find_token("/cable?token=abc", "Bearer xyz") == "abc");
}

TEST_CASE("a request without a token has none") {
    for (auto const* target : {"/cable", "", "?", "/cable?", "/cable?&&", "/cable?tokens=abc",
                               "/cable?TOKEN=abc", "/cable?xtoken=abc", "/token=abc"}) {
        INFO(target);
        CHECK_FALSE(find_token(target, ""));
    }
    for (auto const* header :
         {"Bearer", "Bearer ", "Bearer   \t", "Bearerabc", "Basic abc", "abc", "Token abc", " "}) {
        INFO(header);
        CHECK_FALSE(find_token("/cable", header));
    }
}

TEST_CASE("escapes in the query are undone") {
    CHECK(find_token("/cable?token=a%2Bb%2fc%3D", "") == "a+b/c=");
    CHECK(find_token("/cable?token=a+b", "") == "a b");
    CHECK(find_token("/cable?token=%ED%95%9C%00%ff", "") == "\xED\x95\x9C\0\xFF"s);
    CHECK(find_token("/cable?%74oken=a%26b", "") == "a&b");
}

TEST_CASE("an escape that is none stands for itself") {
    CHECK(find_token("/cable?token=%", "") == "%");
    CHECK(find_token("/cable?token=%4", "") == "%4");
    CHECK(find_token("/cable?token=%zz%4g", "") == "%zz%4g");
    CHECK(find_token("/cable?token=100%25%", "") == "100%%");
}

TEST_CASE("of a repeated token the last one counts") {
    CHECK(find_token("/cable?token=a&token=b", "") == "b");
}
