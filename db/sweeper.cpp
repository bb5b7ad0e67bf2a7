#include "db/sweeper.hpp"

#include "db/flip.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

constexpr int agents_a_round = 500;
constexpr milliseconds lock_timeout{200};
constexpr milliseconds shortest_pause{10};

} // namespace

sweeper::sweeper(session_context const& context, postgres_options const& options,
                 std::size_t board_number, stop_signal& stop)
    : options_{options}
    , board_{context.board}
    , watcher_{context.watcher}
    , stop_{stop}
    , link_{context, {"sweep", board_number, true, true, lock_timeout, false, {&statements::sweep}}}
    , thread_{[this] {
        run();
    }} {}

void sweeper::run() {
    int limit = agents_a_round;
    while (link_.connect(stop_)) {
        if (stop_.is_raised()) {
            return;
        }
        milliseconds pause{0};
        if (link_.is_usable()) {
            try {
                pause = sweep(limit);
                limit = std::min(agents_a_round, limit * 2);
            } catch (call_failure const& e) {
                pause = after_failure(e, limit);
            }
        }
        if (stop_.wait_for(pause)) {
            return;
        }
    }
}

// A round picks at random from what there is to do, so that smaller ones get past an agent to which
// nothing can be done.
milliseconds sweeper::after_failure(call_failure const& e, int& limit) {
    // Once, and not for every smaller round.
    bool const news = limit == agents_a_round && e.kind() != fault::connection;
    spdlog::log(news ? spdlog::level::warn : spdlog::level::debug,
                "sweep failed agents_at_most={} sqlstate={}", limit, e.sqlstate());
    if (limit == 1 && e.is_doubtful()) {
        link_.replace(); // should it be a stale plan
    }
    auto const pause = limit == 1 ? options_.timings.sweep / 5 : shortest_pause;
    limit = std::max(1, limit / 8);
    return pause;
}

// One round. Returns how long until the next, as the database sees it over all nodes.
milliseconds sweeper::sweep(int limit) {
    auto const reply =
        link_.call(statements::sweep,
                   {options_.node, options_.boot_id, std::to_string(options_.timings.sweep.count()),
                    std::to_string(options_.keep_transitions.count()), std::to_string(limit)},
                   true);
    auto const& columns = reply.at(0);
    if (columns.at(0) == "t") {
        board_.swept();
    }
    std::size_t reconciled = 0;
    for (auto const& f : parse_flips(columns.at(2).value_or("{}"))) {
        watcher_.flipped(f.active, f.reason);
        if (auto const more = repairs_.admit()) {
            spdlog::info("sweep repaired agent={} flag={} reason={}{}", f.agent,
                         f.active ? "on" : "off", f.reason, *more);
        }
        if (f.reason == "reconciled") {
            ++reconciled;
        }
    }
    auto const reaped = std::stoul(columns.at(3).value_or("0"));
    if (reaped > 0) {
        spdlog::info("sweep reaped leases={}", reaped);
        watcher_.repaired("expired", reaped);
    }
    if (reconciled > 0) {
        watcher_.repaired("reconciled", reconciled);
    }
    auto const next = milliseconds{std::stoll(columns.at(1).value_or("0"))};
    return std::clamp(next, shortest_pause, options_.timings.sweep);
}

} // namespace presenced::db
