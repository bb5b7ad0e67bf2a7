// Any text frame from a server, as our own client reads it; and any bytes as a JSON string.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

using namespace presenced::protocol;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    std::string_view const text(reinterpret_cast<char const*>(data), size);
    limits const wide{.frame_bytes = 1U << 22U};
    auto const decoded = decode_server_frame(text, wide);
    if (decoded) {
        if (auto const* message = std::get_if<stream_message>(&*decoded)) {
            check(decode_server_frame(encode_stream_message(message->identifier, message->json),
                                      wide) == decoded);
        }
    }
    check(decode_server_frame(encode_confirm(text), wide).has_value());
    return 0;
}
