// Text frames to messages and back: Action Cable v1 JSON (docs/protocol.md).
// Pure functions: no I/O, no clock, no state; any thread. Nothing here throws for what a peer sent
// (only std::bad_alloc can come out).
#pragma once

#include "protocol/message.hpp"
#include "protocol/result.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace presenced::protocol {

// Checked before any parsing, each in one pass over the text.
struct limits {
    std::size_t frame_bytes = 64 * 1024;
    std::size_t identifier_bytes = 4 * 1024; // a connection keeps the identifiers it subscribed to
    std::size_t depth = 32; // arrays and objects inside each other; `{}` has depth 1
};

// ---- Server side --------------------------------------------------------------------------------

// The command in a text frame. Unknown keys are ignored; of a repeated key the last one counts, as
// with JSON.parse of Ruby and JavaScript.
result<command, frame_error> decode_frame(std::string_view text, limits const& bounds = {});

// What a subscribe asks for. `channels` are the configured names; the result's channel points into
// them. The rules of an identifier, which is itself JSON text:
//   channel     a string, equal to one of `channels`
//   agent_id    an integer without fraction or exponent, or a string of ASCII digits only (no sign,
//               no space, leading zeros allowed); 1 to 9223372036854775807 either way
//   session_id  missing or null: none; else a string of at most 255 bytes without NUL
// Other keys are ignored, and of a repeated key the last one counts.
result<channel_params, reject_cause> parse_identifier(std::string_view identifier,
                                                      std::span<std::string const> channels,
                                                      limits const& bounds = {});

// The action that the data of a message command names: its "action", when data is a JSON object
// that has one and it is a string; else nothing.
std::optional<std::string> parse_action(std::string_view data, limits const& bounds = {});

// Constants of the wire, alive as long as the program.
std::string_view encode_welcome() noexcept;
std::string_view encode_disconnect(disconnect_reason reason) noexcept;

std::string encode_ping(std::int64_t unix_seconds);
std::string encode_confirm(std::string_view identifier);
std::string encode_reject(std::string_view identifier);

// json: the message, one JSON text; it goes in as it is, so the caller vouches for it.
std::string encode_stream_message(std::string_view identifier, std::string_view json);

// ---- Client side --------------------------------------------------------------------------------

std::string encode_command(command const& value);

// The identifier text of a subscription, keys in the order channel, agent_id, session_id.
std::string encode_identifier(std::string_view channel, std::int64_t agent_id,
                              std::optional<std::string_view> session_id = std::nullopt);

// A server's frame; nothing when it is none that a client knows. Such frames are to be ignored.
std::optional<server_message> decode_server_frame(std::string_view text, limits const& bounds = {});

// ---- Both ---------------------------------------------------------------------------------------

// Appends text as a JSON string, quotes included. Escapes what JSON demands (quote, backslash,
// control characters) and nothing else; bytes that are not UTF-8 become U+FFFD.
void append_json_string(std::string& out, std::string_view text);

} // namespace presenced::protocol
