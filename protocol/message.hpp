// The messages of the wire (Action Cable v1 JSON, docs/protocol.md) as types.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace presenced::protocol {

// ---- What a client sends ------------------------------------------------------------------------

// An identifier is the string that the client's JSON holds, with the escapes of the frame undone:
// `{"identifier":"{\"agent_id\":7}"}` carries the identifier `{"agent_id":7}`. It is opaque: nobody
// parses and prints it again, so what a client's own JSON parser gets back is, byte for byte, what
// it sent, and two identifiers that differ in a byte are two subscriptions. Rails does the same.
// It is valid UTF-8 and may hold any character, NUL included.

struct subscribe_command {
    std::string identifier;
    bool operator==(subscribe_command const&) const = default;
};

struct unsubscribe_command {
    std::string identifier;
    bool operator==(unsubscribe_command const&) const = default;
};

// data: the text of the client's JSON document, not parsed; parse_action() looks inside.
struct message_command {
    std::string identifier;
    std::string data;
    bool operator==(message_command const&) const = default;
};

using command = std::variant<subscribe_command, unsubscribe_command, message_command>;

// Why a frame was no command. Nothing is sent for it, and the connection goes on.
enum class frame_error : std::uint8_t {
    binary,          // a binary frame: the server finds this one, decode_frame() never returns it
    too_long,        // more bytes than limits::frame_bytes
    too_deep,        // arrays and objects nested deeper than limits::depth
    not_json,        // includes invalid UTF-8, raw NUL bytes, and escapes of half a surrogate pair
    not_an_object,   // JSON, but an array, string, number ...
    unknown_command, // "command" is missing, no string, or none of the three
    missing_identifier, // "identifier" is missing or no string
    missing_data,       // a message whose "data" is missing or no string
};

inline constexpr std::array all_frame_errors{
    frame_error::binary,
    frame_error::too_long,
    frame_error::too_deep,
    frame_error::not_json,
    frame_error::not_an_object,
    frame_error::unknown_command,
    frame_error::missing_identifier,
    frame_error::missing_data,
};

// The enumerator's own name: a metric label and a log field.
std::string_view to_string(frame_error error) noexcept;

// ---- What an identifier says --------------------------------------------------------------------

inline constexpr std::size_t max_session_id_bytes = 255;

struct channel_params {
    std::string_view channel;              // one of the configured names, which own its characters
    std::int64_t agent_id = 0;             // 1 to 2^63-1
    std::optional<std::string> session_id; // at most 255 bytes of UTF-8, no NUL; may be empty
};

// Why a subscribe gets reject_subscription. The first group is found by parse_identifier(), the
// rest by the server and the database. A passing fault is never one of them.
enum class reject_cause : std::uint8_t {
    identifier_too_long,  // more bytes than limits::identifier_bytes
    malformed_identifier, // no JSON object, or nested too deep
    unknown_channel,      // "channel" is missing or not a configured name
    missing_agent_id,     // "agent_id" is missing or null
    malformed_agent_id,   // neither a number nor a numeric string, or not in 1 to 2^63-1
    bad_session_id,       // no string, longer than 255 bytes, or with a NUL, which a PostgreSQL
                          // text cannot hold
    too_many_subscriptions,
    refused, // no such agent, or not the token owner's: the database does not say which
};

inline constexpr std::array all_reject_causes{
    reject_cause::identifier_too_long,    reject_cause::malformed_identifier,
    reject_cause::unknown_channel,        reject_cause::missing_agent_id,
    reject_cause::malformed_agent_id,     reject_cause::bad_session_id,
    reject_cause::too_many_subscriptions, reject_cause::refused,
};

// The enumerator's own name: a metric label and a log field.
std::string_view to_string(reject_cause cause) noexcept;

// ---- What the server sends ----------------------------------------------------------------------

// Why the server ends a connection; sent before the close.
enum class disconnect_reason : std::uint8_t {
    unauthorized,
    server_restart,
    remote,
    lease_lost,
    no_pong,
    too_slow,
    token_expired,
    unavailable,
};

inline constexpr std::array all_disconnect_reasons{
    disconnect_reason::unauthorized,  disconnect_reason::server_restart,
    disconnect_reason::remote,        disconnect_reason::lease_lost,
    disconnect_reason::no_pong,       disconnect_reason::too_slow,
    disconnect_reason::token_expired, disconnect_reason::unavailable,
};

// The name on the wire, which is also the metric label.
std::string_view to_string(disconnect_reason reason) noexcept;

// Whether the client is told to come back. Only a token that will not get better says no.
constexpr bool reconnects(disconnect_reason reason) noexcept {
    return reason != disconnect_reason::unauthorized && reason != disconnect_reason::token_expired;
}

// The server's messages as a client reads them: `presenced connect` and the test client do.
struct welcome_message {
    bool operator==(welcome_message const&) const = default;
};
struct ping_message {
    std::int64_t unix_seconds = 0;
    bool operator==(ping_message const&) const = default;
};
struct confirm_message {
    std::string identifier;
    bool operator==(confirm_message const&) const = default;
};
struct reject_message {
    std::string identifier;
    bool operator==(reject_message const&) const = default;
};
// json: the message as JSON text printed anew: keys in the order they came in, no white space.
struct stream_message {
    std::string identifier;
    std::string json;
    bool operator==(stream_message const&) const = default;
};
// reason: empty when the server named none. reconnect: false when it did not say, as
// @rails/actioncable reads it.
struct disconnect_message {
    std::string reason;
    bool reconnect = false;
    bool operator==(disconnect_message const&) const = default;
};

using server_message = std::variant<welcome_message, ping_message, confirm_message, reject_message,
                                    stream_message, disconnect_message>;

} // namespace presenced::protocol
