#include "db/transition_lane.hpp"

#include "db/arrays.hpp"
#include "db/flip.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

// Enough to spread the cost of a transaction, few enough to stay a matter of milliseconds.
constexpr std::size_t batch_limit = 200;
// A lane waits for no row; this is for what it cannot pass over, a lock on the whole table.
constexpr milliseconds lane_lock_timeout{500};
// How long the busy lane waits for one agent before it turns to the next.
constexpr milliseconds busy_lock_timeout{50};
constexpr milliseconds longest_busy_pause{1'000};
constexpr milliseconds longest_poison_pause{10'000}; // well within the time of a drain
// A suspect's call may take all of a call's time again; others have the busy lane for themselves
// this many times as long.
constexpr int suspect_pause = 10;

milliseconds pause_after(unsigned failures, milliseconds longest) {
    return std::min(longest, milliseconds{25} * (1 << std::min(failures, 12U)));
}

// Each comes back to its lane alone.
void set_aside(operations poisoned, transition_queue& queue, transition_batch& batch) {
    while (!poisoned.empty()) {
        operations one;
        one.splice(one.begin(), poisoned, poisoned.begin());
        auto const pause = pause_after(one.front().refusals + 4, longest_poison_pause);
        batch.drop(queue.delay(std::move(one), pause));
    }
}

char const* kind_of(operation const& op) {
    if (op.what == operation::kind::acquire) {
        return "acquire";
    }
    return op.reason == release_reason::unsubscribed ? "unsubscribed" : "disconnected";
}

} // namespace

transition_batch::transition_batch(connection& link, transition_queue& queue, observer& watcher,
                                   std::string const& node, milliseconds call_timeout)
    : link_{link}
    , queue_{queue}
    , watcher_{watcher}
    , node_{node}
    , validity_{request_validity(call_timeout)} {}

void transition_batch::answer(operations& from, operations::iterator it, lease_outcome outcome) {
    answers_.add(*it->box, {it->key, outcome});
    finished_.splice(finished_.end(), from, it);
}

transition_batch::leftover transition_batch::run(operations batch, bool waits) {
    leftover left;
    send(std::move(batch), waits, left);
    if (std::exchange(doubted_, false)) {
        link_.replace();
    }
    // Off the books first: whoever reads the answer may ask for the next thing at once.
    queue_.finish(finished_);
    finished_.clear();
    answers_.deliver();
    return left;
}

void transition_batch::drop(operations const& dropped) {
    for (auto const& op : dropped) {
        answers_.add(*op.box, {op.key, lease_outcome::abandoned});
    }
    answers_.deliver();
}

void transition_batch::send(operations batch, bool waits, leftover& left) {
    if (!link_.is_usable()) {
        left.again.splice(left.again.end(), batch);
        return;
    }
    array_literal kinds;
    array_literal agents;
    array_literal tokens;
    array_literal session_ids;
    array_literal owners;
    for (auto const& op : batch) {
        kinds.add(kind_of(op));
        agents.add(op.agent);
        tokens.add(op.token.view());
        if (op.session_id && op.what == operation::kind::acquire) {
            session_ids.add(*op.session_id);
        } else {
            session_ids.add_null();
        }
        owners.add(op.owner);
    }
    try {
        auto const not_after = link_.database_time() + validity_.count();
        auto const reply =
            link_.call(statements::transition,
                       {kinds.take(), agents.take(), tokens.take(), session_ids.take(),
                        owners.take(), node_, std::to_string(not_after), waits ? "true" : "false"},
                       true);
        sort(std::move(batch), reply, left);
    } catch (call_failure const& e) {
        for (auto& op : batch) {
            op.maybe_done = op.maybe_done || !e.outcome_known();
        }
        if (e.kind() == fault::element && batch.size() > 1) {
            send_parts(std::move(batch), waits, left);
            return;
        }
        if (e.kind() == fault::element) {
            blame(std::move(batch), e, left);
            return;
        }
        if (e.is_overrun()) {
            left.overran.splice(left.overran.end(), batch);
            return;
        }
        if (e.is_lock_timeout() && waits) {
            left.busy.splice(left.busy.end(), batch);
            return;
        }
        left.locked = left.locked || e.is_lock_timeout();
        left.slow = left.slow || !e.is_lock_timeout();
        left.again.splice(left.again.end(), batch);
    }
}

void transition_batch::send_parts(operations batch, bool waits, leftover& left) {
    auto const size = part_size(batch.size());
    while (!batch.empty()) {
        auto const n = static_cast<std::ptrdiff_t>(std::min(size, batch.size()));
        operations part;
        part.splice(part.begin(), batch, batch.begin(), std::next(batch.begin(), n));
        send(std::move(part), waits, left);
    }
}

void transition_batch::sort(operations batch, rows const& reply, leftover& left) {
    auto const& columns = reply.at(0);
    link_.note_database_time(std::stoll(columns.at(0).value()));
    auto const outcomes = parse_array(columns.at(1).value());
    for (auto const& f : parse_flips(columns.at(2).value_or("{}"))) {
        watcher_.flipped(f.active, f.reason);
        spdlog::debug("routing flipped agent={} flag={} reason={}", f.agent,
                      f.active ? "on" : "off", f.reason);
    }
    if (outcomes.size() != batch.size()) {
        for (auto& op : batch) {
            op.maybe_done = true; // it committed something
        }
        left.slow = true;
        left.again.splice(left.again.end(), batch);
        return;
    }
    auto outcome = outcomes.begin();
    for (auto it = batch.begin(); it != batch.end(); ++outcome) {
        auto const here = it++;
        std::string_view const said = *outcome;
        if (said == "acquired") {
            answer(batch, here, lease_outcome::acquired);
        } else if (said == "refused") {
            answer(batch, here, lease_outcome::refused);
        } else if (said == "released" || said == "gone") {
            answer(batch, here, here->released_outcome());
        } else if (said == "busy") {
            left.busy.splice(left.busy.end(), batch, here);
        } else { // late
            left.again.splice(left.again.end(), batch, here);
        }
    }
}

void transition_batch::blame(operations one, call_failure const& e, leftover& left) {
    auto const it = one.begin();
    if (auto const more = refusals_.admit()) {
        // Not its text, which quotes what the client sent.
        spdlog::warn("transition refused agent={} what={} sqlstate={}{}", it->agent, kind_of(*it),
                     e.sqlstate(), *more);
    }
    doubted_ = doubted_ || e.is_doubtful();
    if (it->what == operation::kind::acquire && e.is_bad_data()) {
        answer(one, it, lease_outcome::refused);
    } else {
        ++it->refusals;
        left.poisoned.splice(left.poisoned.end(), one);
    }
}

transition_lane::transition_lane(unsigned number, session_context const& context,
                                 std::string const& node, std::size_t board_number,
                                 transition_queue& queue, stop_signal& stop)
    : number_{number}
    , queue_{queue}
    , stop_{stop}
    , watcher_{context.watcher}
    , link_{context,
            {"transition",
             board_number,
             true,
             true,
             lane_lock_timeout,
             false,
             {&statements::transition}}}
    , batch_{link_, queue, context.watcher, node, context.call_timeout}
    , thread_{[this] {
        run();
    }} {}

void transition_lane::run() {
    auto limit = batch_limit;
    std::size_t suspected = 0; // how many are to come in batches of `limit`: one of them waits
    while (link_.connect(stop_)) {
        auto work = queue_.take(number_, limit);
        if (work.empty()) {
            return;
        }
        watcher_.batch("transition", work.size());
        auto const size = work.size();
        auto left = batch_.run(std::move(work), false);

        bool const overran = !left.overran.empty();
        batch_.drop(queue_.defer(std::move(left.busy), milliseconds{0}));
        batch_.drop(queue_.suspect(std::move(left.overran), milliseconds{0}));
        set_aside(std::move(left.poisoned), queue_, batch_);
        if (overran) {
            limit = std::max<std::size_t>(1, size / 2);
        } else if (suspected > size) {
            suspected -= size;
        } else if (left.again.empty()) {
            suspected = 0;
            limit = std::min(batch_limit, limit * 2);
        }
        if (left.again.empty()) {
            continue;
        }
        if (left.locked && size == 1) {
            // It need not be the table's lock: a trigger of somebody else's may wait for what it
            // likes. The busy lane does not wait as long.
            batch_.drop(queue_.suspect(std::move(left.again), milliseconds{0}));
            continue;
        }
        if (left.slow && size == 1 && ++left.again.front().failures > 2) {
            // Alone, and it still does not get through: the others come first.
            auto const pause = pause_after(left.again.front().failures, longest_busy_pause);
            batch_.drop(queue_.delay(std::move(left.again), pause));
            continue;
        }
        if (left.locked) {
            limit = part_size(size); // to the culprit in few steps: each waits for its lock
            suspected = size;
        } else if (left.slow) {
            limit = std::max<std::size_t>(1, size / 2);
        }
        batch_.drop(queue_.give_back(std::move(left.again)));
        if (left.locked && stop_.wait_for(lane_lock_timeout / 10)) {
            return;
        }
    }
}

busy_lane::busy_lane(session_context const& context, std::string const& node,
                     std::size_t board_number, transition_queue& queue, stop_signal& stop)
    : queue_{queue}
    , stop_{stop}
    , watcher_{context.watcher}
    , call_timeout_{context.call_timeout}
    , link_{context,
            {"busy", board_number, true, true, busy_lock_timeout, false, {&statements::transition}}}
    , batch_{link_, queue, context.watcher, node, context.call_timeout}
    , thread_{[this] {
        run();
    }} {}

// Each round first passes over whatever is still held, so that nobody who is free by now waits
// for a stuck one, and then waits a little for one agent: under contention, passing over alone
// might never get a turn.
void busy_lane::run() {
    while (link_.connect(stop_)) {
        auto work = queue_.take_busy(batch_limit);
        if (work.empty()) {
            return;
        }
        watcher_.batch("busy", work.size());
        auto left = batch_.run(std::move(work), false);
        auto held = std::move(left.busy);
        left.busy.clear();
        put_back(std::move(left));
        if (held.empty()) {
            continue;
        }
        auto const chosen = held.front().agent; // it has waited longest
        operations one;
        for (auto it = held.begin(); it != held.end();) {
            auto const here = it++;
            if (here->agent == chosen) {
                one.splice(one.end(), held, here);
            }
        }
        back_off(std::move(held));
        put_back(batch_.run(std::move(one), true));
    }
}

void busy_lane::put_back(transition_batch::leftover left) {
    back_off(std::move(left.busy));
    if (left.locked) {
        // They pass over agents and rows that are held: a trigger of one of them waits, or all do
        // for a table. From now on these agents are tried one by one.
        while (!left.again.empty()) {
            operations one;
            one.splice(one.begin(), left.again, left.again.begin());
            auto const pause = pause_after(one.front().failures++, longest_busy_pause);
            batch_.drop(queue_.suspect(std::move(one), pause));
        }
    }
    back_off(std::move(left.again));
    set_aside(std::move(left.poisoned), queue_, batch_);
    bool const alone = std::all_of(left.overran.begin(), left.overran.end(), [&](auto const& op) {
        return op.agent == left.overran.front().agent;
    });
    batch_.drop(queue_.suspect(std::move(left.overran),
                               alone ? suspect_pause * call_timeout_ : milliseconds{0}));
}

void busy_lane::back_off(operations held) {
    while (!held.empty()) {
        operations one;
        one.splice(one.begin(), held, held.begin());
        auto const pause = pause_after(one.front().failures++, longest_busy_pause);
        batch_.drop(queue_.defer(std::move(one), pause));
    }
}

} // namespace presenced::db
