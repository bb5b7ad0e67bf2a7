#include "db/store/sweeper.hpp"

#include "base/threads.hpp"
#include "db/session/thread.hpp"
#include "db/store/answer_row.hpp"
#include "db/store/arrays.hpp"
#include "db/store/flip.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

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
    , thread_{base::start_thread("the database", [this] {
        keep_going(
            "sweep", stop_, [this] { return step(); },
            [this] {
                limit_ = 1; // whatever it was, it is not to come back a hundred times a second
                link_.replace();
                static_cast<void>(stop_.wait_for(options_.timings.sweep / 5));
            });
    })} {}

bool sweeper::step() {
    if (!link_.connect(stop_) || stop_.is_raised()) {
        return false;
    }
    milliseconds pause{0};
    if (link_.is_usable()) {
        try {
            pause = sweep(limit_);
            limit_ = std::min(agents_a_round, limit_ * 2);
        } catch (call_failure const& e) {
            pause = after_failure(e);
        }
    }
    return !stop_.wait_for(pause);
}

// A round picks at random from what there is to do, so that smaller ones get past an agent to which
// nothing can be done.
milliseconds sweeper::after_failure(call_failure const& e) {
    // Once, and not for every smaller round.
    bool const news = limit_ == agents_a_round && e.kind() != fault::connection;
    spdlog::log(news ? spdlog::level::warn : spdlog::level::debug,
                "sweep failed agents_at_most={} sqlstate={}", limit_, e.sqlstate());
    if (limit_ == 1 && e.is_doubtful()) {
        link_.replace(); // should it be a stale plan
    }
    auto const pause = limit_ == 1 ? options_.timings.sweep / 5 : shortest_pause;
    limit_ = std::max(1, limit_ / 8);
    return pause;
}

// One round. Returns how long until the next, as the database sees it over all nodes.
milliseconds sweeper::sweep(int limit) {
    auto const reply =
        link_.call(statements::sweep,
                   {options_.node, options_.boot_id, std::to_string(options_.timings.sweep.count()),
                    std::to_string(options_.keep_transitions.count()), std::to_string(limit)},
                   true);
    answer_row const columns{reply, 4};
    auto const reaped = columns.number(3);
    auto const next = milliseconds{columns.number(1)};
    auto const flips = parse_flips(columns.elements(2));
    if (reaped < 0) {
        throw unreadable_answer{"reaped less than no lease"};
    }
    if (columns.is_true(0)) {
        board_.swept();
    }
    std::size_t reconciled = 0;
    for (auto const& f : flips) {
        watcher_.flipped(f.active, f.reason);
        if (auto const more = repairs_.admit()) {
            spdlog::info("sweep repaired agent={} flag={} reason={}{}", f.agent,
                         f.active ? "on" : "off", f.reason, *more);
        }
        if (f.reason == "reconciled") {
            ++reconciled;
        }
    }
    if (reaped > 0) {
        spdlog::info("sweep reaped leases={}", reaped);
        watcher_.repaired("expired", static_cast<std::size_t>(reaped));
    }
    if (reconciled > 0) {
        watcher_.repaired("reconciled", reconciled);
    }
    return std::clamp(next, shortest_pause, options_.timings.sweep);
}

} // namespace presenced::db
