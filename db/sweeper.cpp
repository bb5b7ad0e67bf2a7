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
    while (link_.connect(stop_)) {
        if (stop_.is_raised()) {
            return;
        }
        milliseconds pause{0};
        if (link_.is_usable()) {
            try {
                pause = sweep();
            } catch (call_failure const& e) {
                spdlog::debug("sweep failed sqlstate={} reason=\"{}\"", e.sqlstate(), e.what());
                pause =
                    e.kind() == fault::connection ? milliseconds{0} : options_.timings.sweep / 5;
            }
        }
        if (stop_.wait_for(pause)) {
            return;
        }
    }
}

// One round. Returns how long until the next, as the database sees it over all nodes.
milliseconds sweeper::sweep() {
    auto const reply = link_.call(
        statements::sweep,
        {options_.node, options_.boot_id, std::to_string(options_.timings.sweep.count()),
         std::to_string(options_.keep_transitions.count()), std::to_string(agents_a_round)});
    auto const& columns = reply.at(0);
    if (columns.at(0) == "t") {
        board_.swept();
    }
    std::size_t reconciled = 0;
    for (auto const& f : parse_flips(columns.at(2).value_or("{}"))) {
        watcher_.flipped(f.active, f.reason);
        spdlog::info("sweep repaired agent={} flag={} reason={}", f.agent, f.active ? "on" : "off",
                     f.reason);
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
