#include "protocol/subprotocol.hpp"

#include "base/text.hpp"

#include <algorithm>
#include <array>

namespace presenced::protocol {

std::string_view choose_subprotocol(std::string_view offered) noexcept {
    // Rails answers the second one too, and @rails/actioncable always offers both.
    static constexpr std::array<std::string_view, 2> known{"actioncable-v1-json",
                                                           "actioncable-unsupported"};
    while (!offered.empty()) {
        auto const comma = std::min(offered.find(','), offered.size());
        // An empty element is none of the names, and is to be ignored (RFC 7230 section 7).
        std::string_view const name = base::trim(offered.substr(0, comma), base::blanks);
        offered.remove_prefix(std::min(comma + 1, offered.size()));
        if (auto const found = std::find(known.begin(), known.end(), name); found != known.end()) {
            return *found;
        }
    }
    return {};
}

} // namespace presenced::protocol
