#include "base/line_limit.hpp"

#include <utility>

namespace presenced::base {

std::optional<std::string> line_limit::admit(std::chrono::steady_clock::time_point now) {
    auto const second =
        std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
    if (std::exchange(second_, second) != second) {
        written_ = 0;
    }
    if (written_ >= most_) {
        ++suppressed_;
        return std::nullopt;
    }
    ++written_;
    auto const left_out = std::exchange(suppressed_, 0);
    return left_out == 0 ? std::string{} : " suppressed=" + std::to_string(left_out);
}

} // namespace presenced::base
