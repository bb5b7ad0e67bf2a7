// Any text frame from a client: decoded or refused, as a second parser has it, and what was decoded
// is echoed byte for byte.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

#include <nlohmann/json.hpp>

using namespace presenced::protocol;
using nlohmann::json;

namespace {

limits const wide{.frame_bytes = 1U << 20U, .identifier_bytes = 1U << 20U, .depth = 40};

struct parsed {
    json tree; // discarded when the text is no JSON
    std::size_t depth = 0;
};

parsed parse_tree(std::string_view text) {
    parsed found;
    auto const note_depth = [&](int outside, json::parse_event_t event, json const&) {
        if (event == json::parse_event_t::object_start ||
            event == json::parse_event_t::array_start) {
            found.depth = std::max(found.depth, static_cast<std::size_t>(outside) + 1);
        }
        return true;
    };
    found.tree = json::parse(text, note_depth, false);
    return found;
}

// decode_frame() by other means: a tree, and what the header says of each member.
result<command, frame_error> decode_by_tree(std::string_view text) {
    if (text.size() > limits{}.frame_bytes) {
        return frame_error::too_long;
    }
    auto const [tree, depth] = parse_tree(text);
    if (tree.is_discarded() || text.find('\0') != std::string_view::npos) {
        return frame_error::not_json;
    }
    if (depth > limits{}.depth) {
        return frame_error::too_deep;
    }
    if (!tree.is_object()) {
        return frame_error::not_an_object;
    }
    auto const string_at = [&members = tree](char const* key) -> std::string const* {
        auto const found = members.find(key);
        return found == members.end() ? nullptr : found->get_ptr<std::string const*>();
    };
    auto const* const verb = string_at("command");
    if (verb == nullptr || (*verb != "subscribe" && *verb != "unsubscribe" && *verb != "message")) {
        return frame_error::unknown_command;
    }
    auto const* const identifier = string_at("identifier");
    if (identifier == nullptr) {
        return frame_error::missing_identifier;
    }
    if (*verb == "subscribe") {
        return command(subscribe_command{*identifier});
    }
    if (*verb == "unsubscribe") {
        return command(unsubscribe_command{*identifier});
    }
    auto const* const data = string_at("data");
    return data == nullptr ? result<command, frame_error>(frame_error::missing_data)
                           : command(message_command{*identifier, *data});
}

// The identifier as the client reads it back: in the same characters, by any JSON parser.
void check_echo(std::string const& identifier) {
    for (auto const& frame : {encode_confirm(identifier), encode_reject(identifier)}) {
        check(json::parse(frame).at("identifier") == identifier);
    }
    check(decode_server_frame(encode_confirm(identifier), wide) ==
          server_message(confirm_message{identifier}));
    check(decode_server_frame(encode_reject(identifier), wide) ==
          server_message(reject_message{identifier}));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto const text = text_of(data, size);
    auto const decoded = decode_frame(text);
    auto const by_tree = decode_by_tree(text);
    check(decoded.has_value() == by_tree.has_value());
    if (!decoded) {
        // Text that is no JSON may look deeper than allowed, and is refused for that.
        check(decoded.error() == by_tree.error() || (decoded.error() == frame_error::too_deep &&
                                                     by_tree.error() == frame_error::not_json));
        return 0;
    }
    check(*decoded == *by_tree);

    auto const again = decode_frame(encode_command(*decoded), wide);
    check(again && *again == *decoded);
    std::visit([](auto const& c) { check_echo(c.identifier); }, *decoded);
    if (auto const* message = std::get_if<message_command>(&*decoded)) {
        auto const action = parse_action(message->data);
        auto const [tree, depth] = parse_tree(message->data);
        bool const names_one =
            tree.is_object() && tree.contains("action") && tree["action"].is_string();
        check(!action || (names_one && tree["action"] == *action));
        check(action || !names_one || depth > limits{}.depth ||
              message->data.find('\0') != std::string::npos);
    }
    return 0;
}
