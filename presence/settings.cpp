#include "presence/settings.hpp"

#include "base/time.hpp"

namespace presenced::presence {

namespace {

using std::chrono::milliseconds;

std::string sentence(std::string const& left, milliseconds value, char const* relation,
                     std::string const& right, milliseconds limit, char const* promise) {
    return left + " = " + base::show_duration(value) + " must be " + relation + " " + right +
           " = " + base::show_duration(limit) + ": " + promise;
}

} // namespace

std::vector<std::string> broken_relations(settings const& s) {
    std::vector<std::string> broken;
    auto require = [&](bool holds, std::string text) {
        if (!holds) {
            broken.push_back(std::move(text));
        }
    };
    auto const zero = milliseconds{0};
    for (auto const& [name, value] :
         {std::pair{"PRESENCED_HEARTBEAT", s.heartbeat},
          std::pair{"PRESENCED_STALE_AFTER", s.stale_after}, std::pair{"PRESENCED_SWEEP", s.sweep},
          std::pair{"PRESENCED_PING", s.ping}, std::pair{"PRESENCED_PEER_TIMEOUT", s.peer_timeout},
          std::pair{"PRESENCED_UNREACHABLE_LIMIT", s.unreachable_limit}}) {
        require(value > zero,
                std::string{name} + " = " + base::show_duration(value) + " must be longer than 0s");
    }
    require(s.disconnect_grace >= zero, "PRESENCED_DISCONNECT_GRACE must not be negative");

    // How much later than it could a renewal leaves.
    auto const late = s.longest_step() + s.gathering();
    auto const and_late = " + " + base::show_duration(late) + " of waiting for others";

    // A renewal may be skipped once for want of evidence and find the database just gone; the
    // outage is too short for an amnesty, and the way back takes a full backoff.
    auto const renewal = 2 * s.heartbeat + s.judge_window() + s.reconnect_limit() + late;
    require(renewal < s.stale_after,
            sentence("2 x PRESENCED_HEARTBEAT + 2 x PRESENCED_SWEEP + PRESENCED_STALE_AFTER / 15" +
                         and_late,
                     renewal, "shorter than", "PRESENCED_STALE_AFTER", s.stale_after,
                     "or a short outage takes answering clients off line"));
    require(s.ping < milliseconds{5'000},
            sentence("PRESENCED_PING", s.ping, "shorter than", "the limit", milliseconds{5'000},
                     "Action Cable clients reconnect after 6 s without a ping"));
    // A client may answer just before peer_timeout; its renewal waits for that answer.
    auto const silence = s.peer_timeout + s.judge_window() + s.reconnect_limit() + late;
    require(silence < s.stale_after,
            sentence("PRESENCED_PEER_TIMEOUT + 2 x PRESENCED_SWEEP + PRESENCED_STALE_AFTER / 15" +
                         and_late,
                     silence, "shorter than", "PRESENCED_STALE_AFTER", s.stale_after,
                     "or a client that answers late loses its lease"));
    auto const lingering = s.disconnect_grace + s.heartbeat;
    require(lingering < s.stale_after,
            sentence("PRESENCED_DISCONNECT_GRACE + PRESENCED_HEARTBEAT", lingering, "shorter than",
                     "PRESENCED_STALE_AFTER", s.stale_after,
                     "or the lease runs out before the grace does"));
    return broken;
}

} // namespace presenced::presence
