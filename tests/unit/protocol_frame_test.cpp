// What a client's text frame means: command, identifier and data, or the cause why it is none.
#include "protocol/codec.hpp"
#include "tests/support/catch.hpp"

#include <set>
#include <string>

using namespace presenced::protocol;
using namespace std::string_literals;

namespace {

// The identifier that a subscribe frame carries. The frame is written out by the test.
std::string identifier_in(std::string const& frame) {
    auto const decoded = decode_frame(frame);
    REQUIRE(decoded);
    REQUIRE(std::holds_alternative<subscribe_command>(*decoded));
    return std::get<subscribe_command>(*decoded).identifier;
}

frame_error error_of(std::string const& frame, limits const& bounds = {}) {
    auto const decoded = decode_frame(frame, bounds);
    INFO("frame " << frame);
    REQUIRE_FALSE(decoded);
    return decoded.error();
}

std::string nested(std::size_t arrays) {
    return std::string(arrays, '[') + std::string(arrays, ']');
}

} // namespace

TEST_CASE("a subscribe carries its identifier") {
    auto const decoded = decode_frame(
        R"({"command":"subscribe","identifier":"{\"channel\":\"AgentChannel\",\"agent_id\":7}"})");
    REQUIRE(decoded);
    CHECK(*decoded == command(subscribe_command{R"({"channel":"AgentChannel","agent_id":7})"}));
}

TEST_CASE("an unsubscribe carries its identifier") {
    auto const decoded =
        decode_frame(R"({"command":"unsubscribe","identifier":"{\"agent_id\":7}"})");
    REQUIRE(decoded);
    CHECK(*decoded == command(unsubscribe_command{R"({"agent_id":7})"}));
}

TEST_CASE("a message carries its identifier and its data as text") {
    auto const decoded = decode_frame(
        R"({"command":"message","identifier":"{\"agent_id\":7}","data":"{\"action\":\"touch\"}"})");
    REQUIRE(decoded);
    CHECK(*decoded == command(message_command{R"({"agent_id":7})", R"({"action":"touch"})"}));
}

TEST_CASE("the order of keys, white space and unknown keys in a frame do not matter") {
    CHECK(identifier_in(" {\t\"identifier\" :\r\n \"x\" , \"data\": {\"identifier\":\"inner\"},"
                        " \"command\":\"subscribe\", \"n\":[1,-2,3.5,true,null,{\"a\":[]}] } ") ==
          "x");
}

TEST_CASE("data of a subscribe is ignored whatever it is") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"x","data":17})") == "x");
}

TEST_CASE("odd white space inside an identifier survives") {
    CHECK(
        identifier_in(R"({"command":"subscribe","identifier":" {\t\"agent_id\" :\n 7 }\r\n "})") ==
        " {\t\"agent_id\" :\n 7 }\r\n ");
}

TEST_CASE("escapes of the frame are undone, escapes of the identifier are kept") {
    CHECK(
        identifier_in(R"({"command":"subscribe","identifier":"\u0041\/\b\f\n\r\t\\u0041\\\/"})") ==
        "A/\b\f\n\r\t\\u0041\\/");
}

TEST_CASE("a surrogate pair in the frame is one character") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"\ud83d\uDE00"})") ==
          "\xF0\x9F\x98\x80");
}

TEST_CASE("half a surrogate pair is no JSON, for it is no text") {
    CHECK(error_of(R"({"command":"subscribe","identifier":"\ud83d"})") == frame_error::not_json);
    CHECK(error_of(R"({"command":"subscribe","identifier":"\ude00x"})") == frame_error::not_json);
    CHECK(error_of(R"({"command":"subscribe","identifier":"\ud83d\ud83d"})") ==
          frame_error::not_json);
}

TEST_CASE("half a surrogate pair in the identifier's own escapes is opaque") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"{\"x\":\"\\ud83d\"}"})") ==
          R"({"x":"\ud83d"})");
}

TEST_CASE("characters beyond ASCII survive in an identifier") {
    CHECK(
        identifier_in("{\"command\":\"subscribe\",\"identifier\":\"\xED\x95\x9C\xC3\xA9\xF0\x9F\x98"
                      "\x80\xE2\x80\xA8\"}") == "\xED\x95\x9C\xC3\xA9\xF0\x9F\x98\x80\xE2\x80\xA8");
}

TEST_CASE("an escaped NUL is part of the identifier") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"a\u0000b"})") == "a\0b"s);
}

TEST_CASE("an empty identifier is an identifier") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":""})").empty());
}

TEST_CASE("of a repeated key in a frame the last one counts") {
    CHECK(identifier_in(R"({"command":"message","identifier":"a","identifier":"b",)"
                        R"("command":"subscribe"})") == "b");
    CHECK(error_of(R"({"command":"subscribe","identifier":"a","identifier":1})") ==
          frame_error::missing_identifier);
    CHECK(error_of(R"({"command":"subscribe","identifier":"a","command":[]})") ==
          frame_error::unknown_command);
}

TEST_CASE("a key that is written with escapes is the same key") {
    CHECK(identifier_in(R"({"\u0063ommand":"subscribe","identifie\u0072":"x"})") == "x");
}

TEST_CASE("keys of inner objects are not the frame's keys") {
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"x","y":{"command":"message",)"
                        R"("identifier":"inner"},"z":[{"identifier":"inner"}]})") == "x");
    CHECK(error_of(R"({"x":{"command":"subscribe","identifier":"x"}})") ==
          frame_error::unknown_command);
}

TEST_CASE("bad JSON is not_json") {
    for (auto const* frame : {"",
                              " ",
                              "{",
                              "}",
                              "nonsense",
                              "{\"command\":\"subscribe\"",
                              "{'command':'subscribe'}",
                              R"({"command":"subscribe","identifier":"x",})",
                              R"({"command":"subscribe"} {})",
                              R"({"command":"subscribe","identifier":"x"}x)",
                              R"({"command":"subscribe" "identifier":""})",
                              R"({"command":"subscribe","identifier":"\x"})",
                              R"({"a":NaN})",
                              R"({"a":01})",
                              R"({"a":"\u12"})",
                              "{\"a\":\"\n\"}",
                              "/* c */{}",
                              "\xEF\xBB",
                              "]]]]",
                              "[",
                              "\"",
                              "\"\\"}) {
        CHECK(error_of(frame) == frame_error::not_json);
    }
}

TEST_CASE("bytes that are no UTF-8 are not_json") {
    for (auto const* bytes : {"\xFF", "\x80", "\xC0\x80", "\xC3", "\xE0\x80\x80", "\xED\xA0\x80",
                              "\xF4\x90\x80\x80", "\xF0\x9F\x98"}) {
        CHECK(error_of("{\"command\":\"subscribe\",\"identifier\":\""s + bytes + "\"}") ==
              frame_error::not_json);
    }
}

TEST_CASE("a raw NUL is not_json, also after a complete object") {
    CHECK(error_of("{\"command\":\"subscribe\",\"identifier\":\"x\"}\0"s) == frame_error::not_json);
    CHECK(error_of("{\"command\":\"subscribe\",\"identifier\":\"x\"}\0garbage"s) ==
          frame_error::not_json);
    CHECK(error_of("{\"command\":\"subscribe\",\"identifier\":\"x\0y\"}"s) ==
          frame_error::not_json);
    CHECK(error_of("\0"s) == frame_error::not_json);
}

TEST_CASE("JSON that is no object is not_an_object") {
    for (auto const* frame : {"[]", "[{\"command\":\"subscribe\",\"identifier\":\"x\"}]", "null",
                              "true", "17", "-1", "1.5", "\"subscribe\""}) {
        CHECK(error_of(frame) == frame_error::not_an_object);
    }
}

TEST_CASE("a command that is missing, no string or unknown is unknown_command") {
    for (auto const* frame :
         {"{}", R"({"identifier":"x"})", R"({"command":null,"identifier":"x"})",
          R"({"command":7,"identifier":"x"})", R"({"command":["subscribe"],"identifier":"x"})",
          R"({"command":"","identifier":"x"})", R"({"command":"Subscribe","identifier":"x"})",
          R"({"command":"subscribe ","identifier":"x"})", R"({"command":"pong"})",
          R"({"command":"subscribe\u0000","identifier":"x"})"}) {
        CHECK(error_of(frame) == frame_error::unknown_command);
    }
}

TEST_CASE("an identifier that is missing or no string is missing_identifier") {
    for (auto const* verb : {"subscribe", "unsubscribe", "message"}) {
        auto const head = R"({"command":")"s + verb + R"(","data":"{}")";
        for (auto const* tail : {"}", R"(,"identifier":null})", R"(,"identifier":7})",
                                 R"(,"identifier":true})", R"(,"identifier":["x"]})",
                                 R"(,"identifier":{"channel":"AgentChannel","agent_id":7}})"}) {
            CHECK(error_of(head + tail) == frame_error::missing_identifier);
        }
    }
}

TEST_CASE("a message whose data is missing or no string is missing_data") {
    for (auto const* tail : {"}", R"(,"data":null})", R"(,"data":{"action":"touch"}})"}) {
        CHECK(error_of(R"({"command":"message","identifier":"x")"s + tail) ==
              frame_error::missing_data);
    }
}

TEST_CASE("a frame may be 64 KiB long and no longer") {
    std::string const head = R"({"command":"subscribe","identifier":")";
    std::string const tail = R"("})";
    std::string const longest(64 * 1024 - head.size() - tail.size(), 'x');
    CHECK(identifier_in(head + longest + tail) == longest);
    CHECK(error_of(head + longest + "x" + tail) == frame_error::too_long);
}

TEST_CASE("a frame may be 32 levels deep and no deeper") {
    auto const frame = [](std::size_t arrays) {
        return R"({"command":"subscribe","identifier":"x","y":)" + nested(arrays) + "}";
    };
    CHECK(identifier_in(frame(31)) == "x");
    CHECK(error_of(frame(32)) == frame_error::too_deep);
    CHECK(error_of(frame(30000)) == frame_error::too_deep);
    CHECK(error_of(std::string(60000, '{')) == frame_error::too_deep);
    CHECK(error_of(R"({"command":"subscribe","identifier":"x","y":[]})", limits{.depth = 1}) ==
          frame_error::too_deep);
}

TEST_CASE("many things beside each other are not deep") {
    std::string frame = R"({"command":"subscribe","identifier":"x","y":[[])";
    for (int i = 0; i < 1000; ++i) {
        frame += ",[{}]";
    }
    CHECK(identifier_in(frame + "]}") == "x");
}

TEST_CASE("brackets inside strings are not deep") {
    std::string const brackets(1000, '[');
    CHECK(identifier_in(R"({"command":"subscribe","identifier":"\")" + brackets + R"(\\"})") ==
          "\"" + brackets + "\\");
}

TEST_CASE("an action is the string under \"action\" of an object") {
    CHECK(parse_action(R"({"action":"touch"})") == "touch");
    CHECK(parse_action(R"({"x":{"action":"inner"},"action":"a","action":"\u0062"})") == "b");
    CHECK(parse_action(R"({"action":""})") == "");
}

TEST_CASE("data without an action names none") {
    for (auto const* data : {"", "null", "[]", "{}", "{", "\"action\"", R"({"action":7})",
                             R"({"action":null})", R"([{"action":"touch"}])"}) {
        CHECK_FALSE(parse_action(data));
    }
    CHECK_FALSE(parse_action("{\"action\":\"touch\"}\0"s));
    CHECK_FALSE(parse_action(R"({"action":"touch","x":)" + nested(32) + "}"));
}

TEST_CASE("every frame error has a name of its own") {
    std::set<std::string_view> names;
    for (auto const error : all_frame_errors) {
        CHECK(to_string(error) != "unknown");
        names.insert(to_string(error));
    }
    CHECK(names == std::set<std::string_view>{"binary", "too_long", "too_deep", "not_json",
                                              "not_an_object", "unknown_command",
                                              "missing_identifier", "missing_data"});
}
