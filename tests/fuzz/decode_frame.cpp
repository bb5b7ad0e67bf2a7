// Any text frame from a client: decoded or refused, and what was decoded can be echoed.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

using namespace presenced::protocol;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    std::string_view const text(reinterpret_cast<char const*>(data), size);
    auto const decoded = decode_frame(text);
    if (!decoded) {
        return 0;
    }
    auto const again = decode_frame(encode_command(*decoded));
    check(again || again.error() == frame_error::too_long); // escapes can make it longer
    check(!again || *again == *decoded);
    limits const wide{.frame_bytes = 1U << 20U};
    std::visit(
        [&](auto const& command) {
            check(decode_server_frame(encode_confirm(command.identifier), wide) ==
                  server_message(confirm_message{command.identifier}));
        },
        *decoded);
    if (auto const* message = std::get_if<message_command>(&*decoded)) {
        (void)parse_action(message->data); // any outcome is right, as long as it is one
    }
    return 0;
}
