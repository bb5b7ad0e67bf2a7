#include "protocol/message.hpp"

namespace presenced::protocol {

std::string_view to_string(frame_error error) noexcept {
    switch (error) {
    case frame_error::binary:
        return "binary";
    case frame_error::too_long:
        return "too_long";
    case frame_error::too_deep:
        return "too_deep";
    case frame_error::not_json:
        return "not_json";
    case frame_error::not_an_object:
        return "not_an_object";
    case frame_error::unknown_command:
        return "unknown_command";
    case frame_error::missing_identifier:
        return "missing_identifier";
    case frame_error::missing_data:
        return "missing_data";
    }
    return "unknown";
}

std::string_view to_string(reject_cause cause) noexcept {
    switch (cause) {
    case reject_cause::identifier_too_long:
        return "identifier_too_long";
    case reject_cause::malformed_identifier:
        return "malformed_identifier";
    case reject_cause::unknown_channel:
        return "unknown_channel";
    case reject_cause::missing_agent_id:
        return "missing_agent_id";
    case reject_cause::malformed_agent_id:
        return "malformed_agent_id";
    case reject_cause::bad_session_id:
        return "bad_session_id";
    case reject_cause::too_many_subscriptions:
        return "too_many_subscriptions";
    case reject_cause::refused:
        return "refused";
    }
    return "unknown";
}

std::string_view to_string(disconnect_reason reason) noexcept {
    switch (reason) {
    case disconnect_reason::unauthorized:
        return "unauthorized";
    case disconnect_reason::server_restart:
        return "server_restart";
    case disconnect_reason::remote:
        return "remote";
    case disconnect_reason::lease_lost:
        return "lease_lost";
    case disconnect_reason::no_pong:
        return "no_pong";
    case disconnect_reason::too_slow:
        return "too_slow";
    case disconnect_reason::token_expired:
        return "token_expired";
    case disconnect_reason::unavailable:
        return "unavailable";
    }
    return "unknown";
}

} // namespace presenced::protocol
