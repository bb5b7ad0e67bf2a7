// What an identifier asks for: channel, agent and session, or the cause of its reject.
#include "protocol/codec.hpp"
#include "tests/support/catch.hpp"

#include <array>
#include <set>
#include <string>

using namespace presenced::protocol;
using namespace std::string_literals;

namespace {

std::array<std::string, 2> const channels{"AgentChannel", "Collavre::AgentChannel"};

channel_params params_of(std::string const& identifier) {
    auto const parsed = parse_identifier(identifier, channels);
    INFO("identifier " << identifier);
    REQUIRE(parsed);
    return *parsed;
}

reject_cause cause_of(std::string const& identifier, limits const& bounds = {}) {
    auto const parsed = parse_identifier(identifier, channels, bounds);
    INFO("identifier " << identifier);
    REQUIRE_FALSE(parsed);
    return parsed.error();
}

std::string with_agent(std::string const& json) {
    return R"({"channel":"AgentChannel","agent_id":)" + json + "}";
}

std::string with_session(std::string const& json) {
    return R"({"channel":"AgentChannel","agent_id":7,"session_id":)" + json + "}";
}

} // namespace

TEST_CASE("an identifier names channel and agent, and no session unless it says so") {
    auto const params = params_of(R"({"channel":"AgentChannel","agent_id":7})");
    CHECK(params.channel == "AgentChannel");
    CHECK(params.agent_id == 7);
    CHECK_FALSE(params.session_id);
}

TEST_CASE("the identifier of the Claude Channel plugin is understood") {
    auto const params = params_of(R"({"channel":"Collavre::AgentChannel","agent_id":42,)"
                                  R"("session_id":"0b8e6f0e-3c1f-4a53-9a3e-5d0f3a3f9b11"})");
    CHECK(params.channel == "Collavre::AgentChannel");
    CHECK(params.agent_id == 42);
    CHECK(params.session_id == "0b8e6f0e-3c1f-4a53-9a3e-5d0f3a3f9b11");
}

TEST_CASE("the channel points into the configured list, not into the identifier") {
    CHECK(params_of(with_agent("7")).channel.data() == channels[0].data());
}

TEST_CASE("keys, their order and their escapes: other keys are ignored, the last one counts") {
    auto const params = params_of(" { \"session_id\":\"a\", \"x\":{\"agent_id\":1,\"channel\":2},"
                                  "\"agent_id\":\"bad\",\t\"y\":[null,-1.5e3,\"agent_id\"],"
                                  "\"session\\u005fid\":\"b\",\"agent_id\":9,"
                                  "\"channel\":7,\"channel\":\"Agent\\u0043hannel\" }\r\n");
    CHECK(params.channel == "AgentChannel");
    CHECK(params.agent_id == 9);
    CHECK(params.session_id == "b");
}

TEST_CASE("a repeated key counts also when its last value is bad") {
    CHECK(cause_of(R"({"channel":"AgentChannel","agent_id":7,"agent_id":null})") ==
          reject_cause::missing_agent_id);
    CHECK(cause_of(R"({"channel":"AgentChannel","agent_id":7,"agent_id":{}})") ==
          reject_cause::malformed_agent_id);
    CHECK(cause_of(R"({"channel":"AgentChannel","agent_id":7,"channel":"Other"})") ==
          reject_cause::unknown_channel);
}

TEST_CASE("an agent_id is a number from 1 to 2^63-1") {
    CHECK(params_of(with_agent("1")).agent_id == 1);
    CHECK(params_of(with_agent("9223372036854775807")).agent_id == 9223372036854775807);
}

TEST_CASE("an agent_id is a numeric string from 1 to 2^63-1, digits only") {
    CHECK(params_of(with_agent(R"("1")")).agent_id == 1);
    CHECK(params_of(with_agent(R"("9223372036854775807")")).agent_id == 9223372036854775807);
    CHECK(params_of(with_agent(R"("007")")).agent_id == 7);
    CHECK(params_of(with_agent(R"("000000000000000000000000000000007")")).agent_id == 7);
    CHECK(params_of(with_agent(R"("\u0037")")).agent_id == 7);
}

TEST_CASE("an agent_id that is missing or null is missing_agent_id") {
    CHECK(cause_of(R"({"channel":"AgentChannel"})") == reject_cause::missing_agent_id);
    CHECK(cause_of(R"({"channel":"AgentChannel","agentId":7})") == reject_cause::missing_agent_id);
    CHECK(cause_of(with_agent("null")) == reject_cause::missing_agent_id);
}

TEST_CASE("an agent_id that is neither is malformed_agent_id") {
    for (auto const* json : {"0",
                             "-0",
                             "-1",
                             "9223372036854775808",
                             "18446744073709551615",
                             "18446744073709551623",
                             "18446744073709551616",
                             "99999999999999999999999",
                             "1.0",
                             "1.5",
                             "1e3",
                             "-7.0",
                             "true",
                             "false",
                             "[]",
                             "[7]",
                             "{}",
                             R"({"agent_id":7})",
                             R"("")",
                             R"(" ")",
                             R"(" 7")",
                             R"("7 ")",
                             R"("+7")",
                             R"("-7")",
                             R"("0")",
                             R"("000")",
                             R"("7.0")",
                             R"("7e0")",
                             R"("0x7")",
                             R"("7\n")",
                             R"("7\u0000")",
                             R"("seven")",
                             R"("9223372036854775808")",
                             R"("18446744073709551623")",
                             R"("99999999999999999999999")",
                             "\"\xD9\xA7\"",
                             "\"\xEF\xBC\x97\""}) {
        CHECK(cause_of(with_agent(json)) == reject_cause::malformed_agent_id);
    }
}

TEST_CASE("a channel that is missing, no string or not configured is unknown_channel") {
    for (auto const* identifier :
         {"{}", R"({"agent_id":7})", R"({"channel":null,"agent_id":7})",
          R"({"channel":7,"agent_id":7})", R"({"channel":["AgentChannel"],"agent_id":7})",
          R"({"channel":"","agent_id":7})", R"({"channel":"agentchannel","agent_id":7})",
          R"({"channel":"AgentChannel ","agent_id":7})", R"({"channel":"OtherChannel"})",
          R"({"channel":"AgentChannel\u0000","agent_id":7})"}) {
        CHECK(cause_of(identifier) == reject_cause::unknown_channel);
    }
}

TEST_CASE("the list of channels is the caller's") {
    std::array<std::string, 1> const other{"OtherChannel"};
    auto const parsed = parse_identifier(R"({"channel":"OtherChannel","agent_id":7})", other);
    REQUIRE(parsed);
    CHECK(parsed->channel == "OtherChannel");
    CHECK_FALSE(parse_identifier(with_agent("7"), other));
    CHECK_FALSE(parse_identifier(with_agent("7"), {}));
}

TEST_CASE("a session_id of null is none") {
    CHECK_FALSE(params_of(with_session("null")).session_id);
}

TEST_CASE("a session_id is text of at most 255 bytes") {
    CHECK(params_of(with_session(R"("")")).session_id == "");
    CHECK(params_of(with_session("\"" + std::string(255, 'x') + "\"")).session_id ==
          std::string(255, 'x'));
    CHECK(cause_of(with_session("\"" + std::string(256, 'x') + "\"")) ==
          reject_cause::bad_session_id);
    CHECK(params_of(with_session(R"("\ud83d\ude00 \u0001\"\\ 한")")).session_id ==
          "\xF0\x9F\x98\x80 \x01\"\\ \xED\x95\x9C");
}

TEST_CASE("the length of a session_id is counted in bytes of UTF-8, not in characters") {
    std::string three_bytes_each;
    for (int i = 0; i < 85; ++i) {
        three_bytes_each += "\\ud55c";
    }
    CHECK(params_of(with_session("\"" + three_bytes_each + "\"")).session_id->size() == 255);
    CHECK(cause_of(with_session("\"" + three_bytes_each + "x\"")) == reject_cause::bad_session_id);
}

TEST_CASE("a session_id that is no string or holds a NUL is bad_session_id") {
    for (auto const* json : {"7", "true", "[]", "{}", R"("\u0000")", R"("a\u0000b")"}) {
        CHECK(cause_of(with_session(json)) == reject_cause::bad_session_id);
    }
}

TEST_CASE("an identifier that is no JSON object is malformed_identifier") {
    for (auto const* identifier :
         {"", "AgentChannel", "null", "7", "[]", "\"{}\"", "{",
          R"({"channel":"AgentChannel","agent_id":7}})",
          R"({"channel":"AgentChannel","agent_id":7,})",
          R"({"channel":"AgentChannel","agent_id":+7})",
          R"({"channel":"AgentChannel","agent_id":007})",
          R"({"channel":"AgentChannel","agent_id":7,"x":"\ud800"})",
          "{\"channel\":\"AgentChannel\",\"agent_id\":7,\"x\":\"\xFF\"}"}) {
        CHECK(cause_of(identifier) == reject_cause::malformed_identifier);
    }
    CHECK(cause_of(with_agent("7") + "\0"s) == reject_cause::malformed_identifier);
}

TEST_CASE("an identifier may be 32 levels deep and no deeper") {
    auto const identifier = [](std::size_t arrays) {
        return R"({"channel":"AgentChannel","agent_id":7,"x":)" + std::string(arrays, '[') +
               std::string(arrays, ']') + "}";
    };
    CHECK(params_of(identifier(31)).agent_id == 7);
    CHECK(cause_of(identifier(32)) == reject_cause::malformed_identifier);
}

TEST_CASE("an identifier may be as long as its limit and no longer") {
    std::string const identifier = with_agent("7");
    auto const spaces = [&](std::size_t total) {
        return identifier + std::string(total - identifier.size(), ' ');
    };
    CHECK(params_of(spaces(limits{}.identifier_bytes)).agent_id == 7);
    CHECK(cause_of(spaces(limits{}.identifier_bytes + 1)) == reject_cause::identifier_too_long);
    CHECK(cause_of(identifier, limits{.identifier_bytes = identifier.size() - 1}) ==
          reject_cause::identifier_too_long);
}

TEST_CASE("what encode_identifier writes is what parse_identifier reads") {
    CHECK(encode_identifier("AgentChannel", 7) == R"({"channel":"AgentChannel","agent_id":7})");
    auto const text = encode_identifier("Collavre::AgentChannel", 9223372036854775807, "a\"\n");
    CHECK(text == R"({"channel":"Collavre::AgentChannel","agent_id":9223372036854775807,)"
                  R"("session_id":"a\"\n"})");
    auto const params = params_of(text);
    CHECK(params.agent_id == 9223372036854775807);
    CHECK(params.session_id == "a\"\n");
}

TEST_CASE("every reject cause has a name of its own") {
    std::set<std::string_view> names;
    for (auto const cause : all_reject_causes) {
        CHECK(to_string(cause) != "unknown");
        names.insert(to_string(cause));
    }
    CHECK(names.size() == all_reject_causes.size());
    CHECK(to_string(reject_cause::refused) == "refused");
}
