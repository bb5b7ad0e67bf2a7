#include "protocol/codec.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace presenced::protocol {
namespace {

enum class shape : std::uint8_t { fine, too_deep, has_nul };

// What must hold before the parser sees the text. JSON text has no raw NUL, and nlohmann_json takes
// one for the end of its input: `{}` NUL `garbage` would be an object.
// Depth is counted outside strings; on text that is no JSON the count means nothing, and the parser
// refuses it afterwards.
shape check_shape(std::string_view text, std::size_t max_depth) noexcept {
    if (text.find('\0') != std::string_view::npos) {
        return shape::has_nul;
    }
    std::size_t depth = 0;
    bool in_string = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        char const c = text[i];
        if (in_string) {
            if (c == '\\') {
                ++i;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > max_depth) {
                return shape::too_deep;
            }
        } else if ((c == '}' || c == ']') && depth > 0) {
            --depth;
        }
    }
    return shape::fine;
}

enum class kind : std::uint8_t {
    absent,
    null,
    string,
    natural, // an integer from 0 to 2^64-1, written without fraction or exponent
    other,
};

struct member {
    kind what = kind::absent;
    std::uint64_t number = 0;
    std::string text;
};

// Reads N named members of the outermost object and skips everything else. The parser calls it; a
// tree would cost an allocation for every key and value that nobody asked for.
template <std::size_t N>
class member_reader {
public:
    using names = std::array<std::string_view, N>;

    explicit member_reader(names const& wanted)
        : names_(wanted) {}

    // False: no JSON. Otherwise is_object() and members are good.
    bool read(std::string_view text) {
        return nlohmann::json::sax_parse(text.data(), text.data() + text.size(), this);
    }
    bool is_object() const noexcept { return is_object_; }
    member& operator[](std::size_t index) noexcept { return members_[index]; }

    // The SAX interface of nlohmann_json.
    bool null() { return value(kind::null); }
    bool boolean(bool) { return value(kind::other); }
    bool number_integer(std::int64_t) { return value(kind::other); } // negative ones only, and -0
    bool number_unsigned(std::uint64_t number) {
        if (value(kind::natural); current_ != nullptr) {
            current_->number = number;
        }
        return true;
    }
    bool number_float(double, std::string const&) { return value(kind::other); }
    bool string(std::string& text) {
        if (value(kind::string); current_ != nullptr) {
            current_->text = std::move(text);
        }
        return true;
    }
    bool binary(nlohmann::json::binary_t&) { return value(kind::other); }
    bool start_object(std::size_t) {
        is_object_ = is_object_ || depth_ == 0;
        return open();
    }
    bool end_object() { return close(); }
    bool start_array(std::size_t) { return open(); }
    bool end_array() { return close(); }
    bool key(std::string& name) {
        if (depth_ == 1) {
            auto const found = std::find(names_.begin(), names_.end(), name);
            named_ = found == names_.end()
                         ? nullptr
                         : &members_[static_cast<std::size_t>(found - names_.begin())];
        }
        return true;
    }
    bool parse_error(std::size_t, std::string const&, nlohmann::json::exception const&) {
        return false;
    }

private:
    // A value begins; current_ is the member that it belongs to, if any. A repeated key overwrites.
    bool value(kind what) {
        current_ = depth_ == 1 ? named_ : nullptr;
        if (current_ != nullptr) {
            current_->what = what;
        }
        return true;
    }
    bool open() {
        value(kind::other);
        ++depth_;
        return true;
    }
    bool close() {
        --depth_;
        return true;
    }

    names names_;
    std::array<member, N> members_;
    member* named_ = nullptr;
    member* current_ = nullptr;
    std::size_t depth_ = 0;
    bool is_object_ = false;
};

// The agent that a member names, or 0.
std::int64_t agent_id_of(member const& id) noexcept {
    if (id.what == kind::natural) {
        return std::in_range<std::int64_t>(id.number) ? static_cast<std::int64_t>(id.number) : 0;
    }
    if (id.what != kind::string ||
        !std::all_of(id.text.begin(), id.text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        return 0;
    }
    std::int64_t number = 0;
    auto const parsed = std::from_chars(id.text.data(), id.text.data() + id.text.size(), number);
    return parsed.ec == std::errc{} ? number : 0;
}

// The length of the well-formed UTF-8 sequence of two or more bytes at text[at], or 0 (Unicode
// standard, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF).
std::size_t utf8_sequence(std::string_view text, std::size_t at) noexcept {
    auto const byte = [&](std::size_t i) {
        return at + i < text.size() ? static_cast<unsigned char>(text[at + i])
                                    : static_cast<unsigned char>(0);
    };
    auto const is_tail = [&](std::size_t i) {
        return (byte(i) & 0xC0U) == 0x80U;
    };
    unsigned char const first = byte(0);
    if (first >= 0xC2 && first <= 0xDF) {
        return is_tail(1) ? 2 : 0;
    }
    if (first >= 0xE0 && first <= 0xEF) {
        unsigned char const low = first == 0xE0 ? 0xA0 : 0x80;
        unsigned char const high = first == 0xED ? 0x9F : 0xBF;
        return byte(1) >= low && byte(1) <= high && is_tail(2) ? 3 : 0;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        unsigned char const low = first == 0xF0 ? 0x90 : 0x80;
        unsigned char const high = first == 0xF4 ? 0x8F : 0xBF;
        return byte(1) >= low && byte(1) <= high && is_tail(2) && is_tail(3) ? 4 : 0;
    }
    return 0;
}

void append_escape(std::string& out, unsigned char c) {
    switch (c) {
    case '"':
        out += "\\\"";
        return;
    case '\\':
        out += "\\\\";
        return;
    case '\b':
        out += "\\b";
        return;
    case '\f':
        out += "\\f";
        return;
    case '\n':
        out += "\\n";
        return;
    case '\r':
        out += "\\r";
        return;
    case '\t':
        out += "\\t";
        return;
    default:
        out += "\\u00";
        out += "0123456789abcdef"[c >> 4U];
        out += "0123456789abcdef"[c & 0xFU];
    }
}

// An identifier is mostly plain characters with some quotes; a quarter more holds their escapes.
std::string frame_with_room_for(std::string_view text, std::size_t rest) {
    std::string frame;
    frame.reserve(text.size() + text.size() / 4 + rest);
    return frame;
}

std::string identifier_and_type(std::string_view identifier, std::string_view type) {
    std::string frame = frame_with_room_for(identifier, type.size() + 32);
    frame += R"({"identifier":)";
    append_json_string(frame, identifier);
    frame += R"(,"type":")";
    frame += type;
    frame += R"("})";
    return frame;
}

} // namespace

result<command, frame_error> decode_frame(std::string_view text, limits const& bounds) {
    if (text.size() > bounds.frame_bytes) {
        return frame_error::too_long;
    }
    switch (check_shape(text, bounds.depth)) {
    case shape::too_deep:
        return frame_error::too_deep;
    case shape::has_nul:
        return frame_error::not_json;
    case shape::fine:
        break;
    }
    enum { name, identifier, data };
    member_reader<3> frame({"command", "identifier", "data"});
    if (!frame.read(text)) {
        return frame_error::not_json;
    }
    if (!frame.is_object()) {
        return frame_error::not_an_object;
    }
    std::string_view const verb =
        frame[name].what == kind::string ? std::string_view(frame[name].text) : std::string_view();
    bool const is_message = verb == "message";
    if (verb != "subscribe" && verb != "unsubscribe" && !is_message) {
        return frame_error::unknown_command;
    }
    if (frame[identifier].what != kind::string) {
        return frame_error::missing_identifier;
    }
    if (is_message && frame[data].what != kind::string) {
        return frame_error::missing_data;
    }
    if (is_message) {
        return command(
            message_command{std::move(frame[identifier].text), std::move(frame[data].text)});
    }
    if (verb == "subscribe") {
        return command(subscribe_command{std::move(frame[identifier].text)});
    }
    return command(unsubscribe_command{std::move(frame[identifier].text)});
}

result<channel_params, reject_cause> parse_identifier(std::string_view identifier,
                                                      std::span<std::string const> channels,
                                                      limits const& bounds) {
    if (identifier.size() > bounds.identifier_bytes) {
        return reject_cause::identifier_too_long;
    }
    enum { channel, agent_id, session_id };
    member_reader<3> params({"channel", "agent_id", "session_id"});
    if (check_shape(identifier, bounds.depth) != shape::fine || !params.read(identifier) ||
        !params.is_object()) {
        return reject_cause::malformed_identifier;
    }

    auto const known = params[channel].what == kind::string
                           ? std::find(channels.begin(), channels.end(), params[channel].text)
                           : channels.end();
    if (known == channels.end()) {
        return reject_cause::unknown_channel;
    }

    member const& id = params[agent_id];
    if (id.what == kind::absent || id.what == kind::null) {
        return reject_cause::missing_agent_id;
    }
    channel_params found{*known, agent_id_of(id), std::nullopt};
    if (found.agent_id == 0) {
        return reject_cause::malformed_agent_id;
    }

    member& session = params[session_id];
    if (session.what == kind::absent || session.what == kind::null) {
        return found;
    }
    if (session.what != kind::string || session.text.size() > max_session_id_bytes ||
        session.text.find('\0') != std::string::npos) {
        return reject_cause::bad_session_id;
    }
    found.session_id = std::move(session.text);
    return found;
}

std::optional<std::string> parse_action(std::string_view data, limits const& bounds) {
    member_reader<1> action({"action"});
    if (data.size() > bounds.frame_bytes || check_shape(data, bounds.depth) != shape::fine ||
        !action.read(data) || action[0].what != kind::string) {
        return std::nullopt;
    }
    return std::move(action[0].text);
}

std::string_view encode_welcome() noexcept {
    return R"({"type":"welcome"})";
}

std::string_view encode_disconnect(disconnect_reason reason) noexcept {
    switch (reason) {
    case disconnect_reason::unauthorized:
        return R"({"type":"disconnect","reason":"unauthorized","reconnect":false})";
    case disconnect_reason::server_restart:
        return R"({"type":"disconnect","reason":"server_restart","reconnect":true})";
    case disconnect_reason::remote:
        return R"({"type":"disconnect","reason":"remote","reconnect":true})";
    case disconnect_reason::lease_lost:
        return R"({"type":"disconnect","reason":"lease_lost","reconnect":true})";
    case disconnect_reason::no_pong:
        return R"({"type":"disconnect","reason":"no_pong","reconnect":true})";
    case disconnect_reason::too_slow:
        return R"({"type":"disconnect","reason":"too_slow","reconnect":true})";
    case disconnect_reason::token_expired:
        return R"({"type":"disconnect","reason":"token_expired","reconnect":false})";
    case disconnect_reason::unavailable:
        break;
    }
    return R"({"type":"disconnect","reason":"unavailable","reconnect":true})";
}

std::string encode_ping(std::int64_t unix_seconds) {
    return R"({"type":"ping","message":)" + std::to_string(unix_seconds) + "}";
}

std::string encode_confirm(std::string_view identifier) {
    return identifier_and_type(identifier, "confirm_subscription");
}

std::string encode_reject(std::string_view identifier) {
    return identifier_and_type(identifier, "reject_subscription");
}

std::string encode_stream_message(std::string_view identifier, std::string_view json) {
    std::string frame = frame_with_room_for(identifier, json.size() + 32);
    frame += R"({"identifier":)";
    append_json_string(frame, identifier);
    frame += R"(,"message":)";
    frame += json;
    frame += '}';
    return frame;
}

std::string encode_command(command const& value) {
    auto const encode = [](std::string_view verb, std::string_view identifier,
                           std::string_view const* data) {
        std::string frame =
            frame_with_room_for(identifier, 64 + (data != nullptr ? data->size() : 0));
        frame += R"({"command":")";
        frame += verb;
        frame += R"(","identifier":)";
        append_json_string(frame, identifier);
        if (data != nullptr) {
            frame += R"(,"data":)";
            append_json_string(frame, *data);
        }
        frame += '}';
        return frame;
    };
    if (auto const* subscribe = std::get_if<subscribe_command>(&value)) {
        return encode("subscribe", subscribe->identifier, nullptr);
    }
    if (auto const* unsubscribe = std::get_if<unsubscribe_command>(&value)) {
        return encode("unsubscribe", unsubscribe->identifier, nullptr);
    }
    auto const& message = std::get<message_command>(value);
    std::string_view const data = message.data;
    return encode("message", message.identifier, &data);
}

std::string encode_identifier(std::string_view channel, std::int64_t agent_id,
                              std::optional<std::string_view> session_id) {
    std::string text = R"({"channel":)";
    append_json_string(text, channel);
    text += R"(,"agent_id":)";
    text += std::to_string(agent_id);
    if (session_id) {
        text += R"(,"session_id":)";
        append_json_string(text, *session_id);
    }
    text += '}';
    return text;
}

std::optional<server_message> decode_server_frame(std::string_view text, limits const& bounds) {
    if (text.size() > bounds.frame_bytes || check_shape(text, bounds.depth) != shape::fine) {
        return std::nullopt;
    }
    using json = nlohmann::ordered_json; // a stream message keeps the order of its keys
    json const frame = json::parse(text.data(), text.data() + text.size(), nullptr, false);
    if (!frame.is_object()) { // what is no JSON is discarded, which is no object either
        return std::nullopt;
    }
    auto const string_at = [&](char const* name) -> std::optional<std::string> {
        auto const found = frame.find(name);
        return found != frame.end() && found->is_string()
                   ? std::optional(found->get_ref<std::string const&>())
                   : std::nullopt;
    };
    auto const type = string_at("type");
    auto identifier = string_at("identifier");
    auto const message = frame.find("message");
    if (!type) {
        if (!identifier || message == frame.end()) {
            return std::nullopt;
        }
        return stream_message{std::move(*identifier), message->dump()};
    }
    if (*type == "welcome") {
        return welcome_message{};
    }
    if (*type == "ping" && message != frame.end() && message->is_number_integer()) {
        return ping_message{message->get<std::int64_t>()};
    }
    if (*type == "confirm_subscription" && identifier) {
        return confirm_message{std::move(*identifier)};
    }
    if (*type == "reject_subscription" && identifier) {
        return reject_message{std::move(*identifier)};
    }
    if (*type == "disconnect") {
        auto const reconnect = frame.find("reconnect");
        return disconnect_message{string_at("reason").value_or(std::string()),
                                  reconnect != frame.end() && reconnect->is_boolean() &&
                                      reconnect->get<bool>()};
    }
    return std::nullopt;
}

void append_json_string(std::string& out, std::string_view text) {
    out += '"';
    std::size_t done = 0; // what is before it has been appended
    std::size_t at = 0;
    while (at < text.size()) {
        auto const c = static_cast<unsigned char>(text[at]);
        if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
            ++at;
            continue;
        }
        if (c >= 0x80) {
            if (std::size_t const length = utf8_sequence(text, at); length != 0) {
                at += length;
                continue;
            }
        }
        out.append(text, done, at - done);
        if (c >= 0x80) {
            out += "\xEF\xBF\xBD";
        } else {
            append_escape(out, c);
        }
        done = ++at;
    }
    out.append(text, done, at - done);
    out += '"';
}

} // namespace presenced::protocol
