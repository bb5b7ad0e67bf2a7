#include "server/cable/cable_frames.hpp"

#include "protocol/codec.hpp"

#include <array>
#include <memory>

namespace presenced::server {

namespace {

frame shared_text(std::string_view text) {
    return std::make_shared<std::string const>(text);
}

} // namespace

frame const& welcome() {
    static frame const f = shared_text(protocol::encode_welcome());
    return f;
}

frame const& goodbye(protocol::disconnect_reason why) {
    static auto const all = [] {
        std::array<frame, protocol::all_disconnect_reasons.size()> frames;
        for (auto const reason : protocol::all_disconnect_reasons) {
            frames[static_cast<std::size_t>(reason)] =
                shared_text(protocol::encode_disconnect(reason));
        }
        return frames;
    }();
    return all[static_cast<std::size_t>(why)];
}

} // namespace presenced::server
