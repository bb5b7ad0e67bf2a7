// Any text frame from a server, as our own client reads it; and any bytes as a JSON string.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

#include <nlohmann/json.hpp>

using namespace presenced::protocol;
using nlohmann::json;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto const text = text_of(data, size);
    limits const wide{.frame_bytes = 1U << 22U};
    auto const decoded = decode_server_frame(text, wide);
    if (decoded) {
        check(json::parse(text).is_object());
        if (auto const* message = std::get_if<stream_message>(&*decoded)) {
            check(decode_server_frame(encode_stream_message(message->identifier, message->json),
                                      wide) == decoded);
        } else if (auto const* ping = std::get_if<ping_message>(&*decoded)) {
            check(decode_server_frame(encode_ping(ping->unix_seconds), wide) == decoded);
        }
    }

    // Whatever the bytes are, what comes out is JSON, and the same again when it is read back.
    std::string string;
    append_json_string(string, text);
    auto const read = json::parse(string).get<std::string>();
    std::string again;
    append_json_string(again, read);
    check(again == string);
    // Text that was UTF-8 is what it was.
    auto const strict = json(std::string(text)).dump(-1, ' ', false, json::error_handler_t::ignore);
    check(json::parse(strict).get<std::string>() != text || read == text);
    return 0;
}
