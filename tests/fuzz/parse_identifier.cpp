// Any identifier: parameters within their bounds, or a cause; either way as a second parser has it.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

#include <nlohmann/json.hpp>

#include <array>
#include <charconv>

using namespace presenced::protocol;
using nlohmann::json;

namespace {

std::array<std::string, 2> const channels{"AgentChannel", "Collavre::AgentChannel"};

std::int64_t number_in(json const& id) {
    std::int64_t number = 0;
    if (id.is_number_unsigned() && id.get<std::uint64_t>() <= INT64_MAX) {
        number = id.get<std::int64_t>();
    } else if (id.is_string()) {
        auto const& digits = id.get_ref<std::string const&>();
        if (digits.find_first_not_of("0123456789") == std::string::npos) {
            std::from_chars(digits.data(), digits.data() + digits.size(), number);
        }
    }
    return number;
}

// What a tree finds, by the rules of the header; nothing when it is to be rejected.
std::optional<channel_params> parse_by_tree(std::string_view identifier) {
    auto const tree = json::parse(identifier, nullptr, false);
    if (!tree.is_object()) {
        return std::nullopt;
    }
    auto const channel =
        std::find(channels.begin(), channels.end(),
                  tree.value("channel", json()).is_string() ? tree["channel"].get<std::string>()
                                                            : std::string());
    auto const agent = number_in(tree.value("agent_id", json()));
    if (channel == channels.end() || agent <= 0) {
        return std::nullopt;
    }
    channel_params found{*channel, agent, std::nullopt};
    if (auto const session = tree.value("session_id", json()); session.is_string()) {
        found.session_id = session.get<std::string>();
        if (found.session_id->size() > max_session_id_bytes ||
            found.session_id->find('\0') != std::string::npos) {
            return std::nullopt;
        }
    } else if (!session.is_null()) {
        return std::nullopt;
    }
    return found;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto const identifier = text_of(data, size);
    auto const params = parse_identifier(identifier, channels);
    auto const by_tree = parse_by_tree(identifier);
    if (!params) {
        check(!by_tree || params.error() == reject_cause::identifier_too_long ||
              params.error() == reject_cause::malformed_identifier); // NUL, or too deep
        return 0;
    }
    check(by_tree && params->channel == by_tree->channel && params->agent_id == by_tree->agent_id &&
          params->session_id == by_tree->session_id);
    check(std::count(channels.begin(), channels.end(), params->channel) == 1);
    auto const again = parse_identifier(
        encode_identifier(params->channel, params->agent_id, params->session_id), channels);
    check(again && again->agent_id == params->agent_id && again->session_id == params->session_id);
    return 0;
}
