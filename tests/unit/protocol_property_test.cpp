// What holds for any identifier and any frame, tried on random ones with fixed seeds.
#include "protocol/codec.hpp"
#include "tests/support/catch.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

using namespace presenced::protocol;

namespace {

std::array<std::string, 2> const channels{"AgentChannel", "Collavre::AgentChannel"};

using random_source = std::mt19937;

std::size_t below(random_source& random, std::size_t end) {
    return std::uniform_int_distribution<std::size_t>(0, end - 1)(random);
}

void append_utf8(std::string& out, std::uint32_t point) {
    auto const put = [&](std::uint32_t byte) {
        out += static_cast<char>(byte);
    };
    if (point < 0x80) {
        put(point);
    } else if (point < 0x800) {
        put(0xC0U | (point >> 6U));
        put(0x80U | (point & 0x3FU));
    } else if (point < 0x10000) {
        put(0xE0U | (point >> 12U));
        put(0x80U | ((point >> 6U) & 0x3FU));
        put(0x80U | (point & 0x3FU));
    } else {
        put(0xF0U | (point >> 18U));
        put(0x80U | ((point >> 12U) & 0x3FU));
        put(0x80U | ((point >> 6U) & 0x3FU));
        put(0x80U | (point & 0x3FU));
    }
}

// Any characters, with more of those that JSON treats specially.
std::string random_text(random_source& random, std::size_t longest) {
    static constexpr std::string_view special = "\"\\/{}[]:,\b\f\n\r\t u0123456789abcdefAF";
    std::string text;
    for (std::size_t left = below(random, longest + 1); left > 0; --left) {
        switch (below(random, 4)) {
        case 0:
            text += special[below(random, special.size())];
            break;
        case 1:
            text += static_cast<char>(below(random, 0x80));
            break;
        case 2:
            append_utf8(text, static_cast<std::uint32_t>(0x80 + below(random, 0xD800 - 0x80)));
            break;
        default:
            append_utf8(text,
                        static_cast<std::uint32_t>(0xE000 + below(random, 0x110000 - 0xE000)));
        }
    }
    return text;
}

// One to four small damages: a byte flipped, inserted, removed, or a part repeated.
std::string damage(random_source& random, std::string text) {
    for (std::size_t left = 1 + below(random, 4); left > 0; --left) {
        std::size_t const at = below(random, text.size() + 1);
        switch (below(random, 4)) {
        case 0:
            if (at < text.size()) {
                text[at] = static_cast<char>(below(random, 256));
            }
            break;
        case 1:
            text.insert(at, 1, "\"\\{}[],:\0\xFF\xED"[below(random, 11)]);
            break;
        case 2:
            text.erase(at, 1 + below(random, 3));
            break;
        default:
            text.insert(at, text.substr(below(random, text.size() + 1), below(random, 40)));
        }
    }
    return text;
}

command random_command(random_source& random) {
    std::string identifier =
        below(random, 2) == 0
            ? random_text(random, 60)
            : encode_identifier(channels[below(random, 2)],
                                static_cast<std::int64_t>(1 + below(random, 1000)),
                                random_text(random, 20));
    switch (below(random, 3)) {
    case 0:
        return subscribe_command{std::move(identifier)};
    case 1:
        return unsubscribe_command{std::move(identifier)};
    default:
        return message_command{std::move(identifier), random_text(random, 60)};
    }
}

} // namespace

TEST_CASE("any command survives being written and read") {
    random_source random(20240229);
    for (int round = 0; round < 5000; ++round) {
        command const sent = random_command(random);
        std::string const frame = encode_command(sent);
        auto const got = decode_frame(frame);
        INFO("round " << round << " frame " << frame);
        REQUIRE(got);
        REQUIRE(*got == sent);
    }
}

TEST_CASE("any identifier comes back to its client byte for byte") {
    random_source random(7);
    for (int round = 0; round < 5000; ++round) {
        std::string const identifier = random_text(random, 80);
        INFO("round " << round);
        REQUIRE(decode_server_frame(encode_confirm(identifier)) ==
                server_message(confirm_message{identifier}));
        REQUIRE(decode_server_frame(encode_reject(identifier)) ==
                server_message(reject_message{identifier}));
    }
}

TEST_CASE("any agent and session survive in an identifier") {
    random_source random(63);
    std::uniform_int_distribution<std::int64_t> agents(1, INT64_MAX);
    for (int round = 0; round < 5000; ++round) {
        std::int64_t const agent_id = agents(random);
        std::string const session_id = random_text(random, 60);
        std::string const& channel = channels[below(random, 2)];
        auto const params =
            parse_identifier(encode_identifier(channel, agent_id, session_id), channels);
        INFO("round " << round);
        if (session_id.size() > max_session_id_bytes ||
            session_id.find('\0') != std::string::npos) {
            REQUIRE_FALSE(params);
            REQUIRE(params.error() == reject_cause::bad_session_id);
            continue;
        }
        REQUIRE(params);
        REQUIRE(params->channel == channel);
        REQUIRE(params->agent_id == agent_id);
        REQUIRE(params->session_id == session_id);
    }
}

TEST_CASE("whatever bytes are written, a client can read the frame") {
    random_source random(256);
    for (int round = 0; round < 5000; ++round) {
        std::string bytes(below(random, 40), '\0');
        std::generate(bytes.begin(), bytes.end(),
                      [&] { return static_cast<char>(below(random, 256)); });
        INFO("round " << round);
        REQUIRE(decode_server_frame(encode_confirm(bytes)).has_value());
        REQUIRE(decode_frame(encode_command(message_command{bytes, bytes})));
    }
}

TEST_CASE("a damaged frame is a command or an error, never an exception") {
    random_source random(1011);
    int commands = 0;
    int errors = 0;
    for (int round = 0; round < 20000; ++round) {
        std::string const frame = damage(random, encode_command(random_command(random)));
        auto const got = decode_frame(frame);
        if (!got) {
            ++errors;
            continue;
        }
        ++commands;
        // What was accepted is text that can be echoed: it comes back the same.
        std::visit(
            [&](auto const& accepted) {
                INFO("round " << round);
                REQUIRE(decode_server_frame(encode_reject(accepted.identifier)) ==
                        server_message(reject_message{accepted.identifier}));
            },
            *got);
    }
    // Both happen, or the damage proves nothing.
    CHECK(commands > 500);
    CHECK(errors > 500);
}

TEST_CASE("a damaged identifier is parameters or a cause, never an exception") {
    random_source random(1999);
    int accepted = 0;
    int rejected = 0;
    for (int round = 0; round < 20000; ++round) {
        auto const params = parse_identifier(
            damage(random, encode_identifier(channels[below(random, 2)], 42, "session")), channels);
        if (!params) {
            ++rejected;
            continue;
        }
        ++accepted;
        INFO("round " << round);
        REQUIRE(params->agent_id > 0);
        REQUIRE(std::count(channels.begin(), channels.end(), params->channel) == 1);
    }
    CHECK(accepted > 500);
    CHECK(rejected > 500);
}
