// What the server writes, byte by byte, and what a client reads out of it.
#include "protocol/codec.hpp"
#include "tests/support/catch.hpp"

#include <set>
#include <string>

using namespace presenced::protocol;
using namespace std::string_literals;

namespace {

std::string as_json_string(std::string_view text) {
    std::string out;
    append_json_string(out, text);
    return out;
}

} // namespace

TEST_CASE("welcome, ping, confirm and reject have the bytes of Action Cable") {
    CHECK(encode_welcome() == R"({"type":"welcome"})");
    CHECK(encode_ping(1700000000) == R"({"type":"ping","message":1700000000})");
    CHECK(encode_confirm(R"({"agent_id":7})") ==
          R"({"identifier":"{\"agent_id\":7}","type":"confirm_subscription"})");
    CHECK(encode_reject(R"({"agent_id":7})") ==
          R"({"identifier":"{\"agent_id\":7}","type":"reject_subscription"})");
}

TEST_CASE("a stream message carries any JSON as it is") {
    CHECK(encode_stream_message(R"({"agent_id":7})", R"({"a":[1, 2.50],"b":"\u0041"})") ==
          R"({"identifier":"{\"agent_id\":7}","message":{"a":[1, 2.50],"b":"\u0041"}})");
    CHECK(encode_stream_message("x", "null") == R"({"identifier":"x","message":null})");
}

TEST_CASE("a disconnect names its reason and says whether to come back") {
    struct {
        disconnect_reason reason;
        std::string name;
        bool reconnect;
    } const table[] = {
        {disconnect_reason::unauthorized, "unauthorized", false},
        {disconnect_reason::server_restart, "server_restart", true},
        {disconnect_reason::remote, "remote", true},
        {disconnect_reason::lease_lost, "lease_lost", true},
        {disconnect_reason::no_pong, "no_pong", true},
        {disconnect_reason::too_slow, "too_slow", true},
        {disconnect_reason::token_expired, "token_expired", false},
        {disconnect_reason::unavailable, "unavailable", true},
    };
    CHECK(std::size(table) == all_disconnect_reasons.size());
    for (auto const& row : table) {
        CHECK(to_string(row.reason) == row.name);
        CHECK(reconnects(row.reason) == row.reconnect);
        CHECK(encode_disconnect(row.reason) == R"({"type":"disconnect","reason":")" + row.name +
                                                   R"(","reconnect":)" +
                                                   (row.reconnect ? "true" : "false") + "}");
    }
}

TEST_CASE("every disconnect reason is listed once") {
    std::set<disconnect_reason> const reasons(all_disconnect_reasons.begin(),
                                              all_disconnect_reasons.end());
    CHECK(reasons.size() == 8);
}

TEST_CASE("a JSON string escapes quotes, backslashes and control characters, and nothing else") {
    CHECK(as_json_string("") == R"("")");
    CHECK(as_json_string("a\"b\\c") == R"("a\"b\\c")");
    CHECK(as_json_string("\b\f\n\r\t") == R"("\b\f\n\r\t")");
    CHECK(as_json_string("\0\x01\x1f\x7f"s) == "\"\\u0000\\u0001\\u001f\x7f\"");
    CHECK(as_json_string("</script>&'/") == "\"</script>&'/\"");
}

TEST_CASE("a JSON string keeps characters beyond ASCII") {
    for (auto const* text : {"\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xE2\x80\xA8", "\xED\x9F\xBF",
                             "\xEE\x80\x80", "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF",
                             "a\xED\x95\x9C"
                             "b"}) {
        CHECK(as_json_string(text) == "\""s + text + "\"");
    }
}

TEST_CASE("bytes that are no UTF-8 become replacement characters") {
    std::string const instead = "\xEF\xBF\xBD";
    CHECK(as_json_string("\xFF") == "\"" + instead + "\"");
    CHECK(as_json_string("a\x80z") == "\"a" + instead + "z\"");
    CHECK(as_json_string("\xE2\x82") == "\"" + instead + instead + "\"");
    CHECK(as_json_string("\xE2\x82\"") == "\"" + instead + instead + "\\\"\"");
    CHECK(as_json_string("\xC0\xAF") == "\"" + instead + instead + "\"");
    CHECK(as_json_string("\xED\xA0\x80") == "\"" + instead + instead + instead + "\"");
    CHECK(as_json_string("\xF5") == "\"" + instead + "\"");
    CHECK(as_json_string("\xF4\x90\x80\x80") ==
          "\"" + instead + instead + instead + instead + "\"");
}

TEST_CASE("a client gets back the identifier that it sent, byte for byte") {
    for (auto const& identifier :
         {R"({"channel":"AgentChannel","agent_id":7})"s, " {\t\"agent_id\" :\r\n 7.0 } "s,
          R"({"agent_id":"\u0037","agent_id":"\ud83d\ude00","x":"\/\\"})"s,
          "{\"s\":\"\xED\x95\x9C\xE2\x80\xA8\xF0\x9F\x98\x80\"}"s, "a\0b\x01"s, "no json"s, ""s}) {
        auto const sent = decode_frame(encode_command(subscribe_command{identifier}));
        REQUIRE(sent);
        auto const& kept = std::get<subscribe_command>(*sent).identifier;
        CHECK(kept == identifier);
        CHECK(decode_server_frame(encode_confirm(kept)) ==
              server_message(confirm_message{identifier}));
        CHECK(decode_server_frame(encode_reject(kept)) ==
              server_message(reject_message{identifier}));
        CHECK(decode_server_frame(encode_stream_message(kept, "{}")) ==
              server_message(stream_message{identifier, "{}"}));
    }
}

TEST_CASE("a client's commands have the bytes of Action Cable") {
    CHECK(encode_command(subscribe_command{R"({"agent_id":7})"}) ==
          R"({"command":"subscribe","identifier":"{\"agent_id\":7}"})");
    CHECK(encode_command(unsubscribe_command{"x"}) ==
          R"({"command":"unsubscribe","identifier":"x"})");
    CHECK(encode_command(message_command{"x", R"({"action":"touch"})"}) ==
          R"({"command":"message","identifier":"x","data":"{\"action\":\"touch\"}"})");
}

TEST_CASE("a client reads what the server writes") {
    CHECK(decode_server_frame(encode_welcome()) == server_message(welcome_message{}));
    CHECK(decode_server_frame(encode_ping(1700000000)) == server_message(ping_message{1700000000}));
    for (auto const reason : all_disconnect_reasons) {
        CHECK(
            decode_server_frame(encode_disconnect(reason)) ==
            server_message(disconnect_message{std::string(to_string(reason)), reconnects(reason)}));
    }
    CHECK(decode_server_frame(encode_stream_message("x", R"({"z":1, "a":[true,null]})")) ==
          server_message(stream_message{"x", R"({"z":1,"a":[true,null]})"}));
}

TEST_CASE("a client reads the frames of other servers") {
    CHECK(decode_server_frame(R"({"type":"welcome","sid":"abc"})") ==
          server_message(welcome_message{}));
    CHECK(decode_server_frame(R"({"type":"disconnect"})") ==
          server_message(disconnect_message{"", false}));
    CHECK(decode_server_frame(R"({"type":"disconnect","reason":null,"reconnect":true})") ==
          server_message(disconnect_message{"", true}));
}

TEST_CASE("a client ignores what it does not know") {
    for (auto const* text :
         {"", "{", "[]", "null", "{}", R"({"type":"news"})", R"({"type":7})", R"({"type":"ping"})",
          R"({"type":"ping","message":"soon"})", R"({"type":"confirm_subscription"})",
          R"({"type":"reject_subscription","identifier":7})", R"({"identifier":"x"})",
          R"({"message":{}})"}) {
        INFO(text);
        CHECK_FALSE(decode_server_frame(text));
    }
    CHECK_FALSE(decode_server_frame(std::string(encode_welcome()) + "\0"s));
    CHECK_FALSE(decode_server_frame(std::string(33, '[') + std::string(33, ']')));
}
