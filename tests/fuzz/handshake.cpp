// Any headers of an upgrade request. The input is five lines: origin, host, list entry,
// subprotocols, target; what is missing is empty.
#include "protocol/credentials.hpp"
#include "protocol/origin.hpp"
#include "protocol/subprotocol.hpp"
#include "tests/fuzz/check.hpp"

#include <algorithm>
#include <array>

using namespace presenced::protocol;

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    std::string_view rest(reinterpret_cast<char const*>(data), size);
    auto const next_line = [&rest] {
        auto const end = std::min(rest.find('\n'), rest.size());
        std::string_view const line = rest.substr(0, end);
        rest.remove_prefix(std::min(end + 1, rest.size()));
        return line;
    };
    std::string_view const origin = next_line();
    std::string_view const host = next_line();
    std::array<std::string, 1> const list{std::string(next_line())};
    std::string_view const offered = next_line();
    std::string_view const target = next_line();

    bool const by_host = is_origin_allowed(origin, host, {});
    bool const by_list = is_origin_allowed(origin, {}, list);
    check(is_origin_allowed(origin, host, list) == (by_host || by_list));
    check(!by_list || is_origin_pattern(list[0]));

    std::string_view const chosen = choose_subprotocol(offered);
    check(chosen.empty() || offered.find(chosen) != std::string_view::npos);

    auto const token = find_token(target, offered);
    check(!token || !token->empty());
    return 0;
}
