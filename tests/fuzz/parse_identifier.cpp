// Any identifier: parameters within their bounds, or a cause.
#include "protocol/codec.hpp"
#include "tests/fuzz/check.hpp"

#include <algorithm>
#include <array>

using namespace presenced::protocol;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    static std::array<std::string, 2> const channels{"AgentChannel", "Collavre::AgentChannel"};
    std::string_view const identifier(reinterpret_cast<char const*>(data), size);
    auto const params = parse_identifier(identifier, channels);
    if (!params) {
        return 0;
    }
    check(std::count(channels.begin(), channels.end(), params->channel) == 1);
    check(params->agent_id > 0);
    if (params->session_id) {
        check(params->session_id->size() <= max_session_id_bytes);
        check(params->session_id->find('\0') == std::string::npos);
    }
    auto const again = parse_identifier(
        encode_identifier(params->channel, params->agent_id, params->session_id), channels);
    check(again && again->agent_id == params->agent_id && again->session_id == params->session_id);
    return 0;
}
