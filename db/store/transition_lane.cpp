#include "db/store/transition_lane.hpp"

#include "base/threads.hpp"
#include "db/session/thread.hpp"
#include "db/store/answer_row.hpp"
#include "db/store/arrays.hpp"
#include "db/store/flip.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

namespace presenced::db {

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A lane waits for no row; this is for what it cannot pass over, a lock on the whole table.
constexpr milliseconds lane_lock_timeout{500};
// How long the busy lane waits for one agent before it turns to the next.
constexpr milliseconds busy_lock_timeout{50};
constexpr milliseconds longest_busy_pause{1'000};
constexpr milliseconds longest_poison_pause{10'000}; // well within the time of a drain
// A suspect's call may take all of a call's time again; others have the busy lane for themselves
// this many times as long.
constexpr int suspect_pause = 10;

milliseconds poison_pause(operation const& op) {
    return pause_after(op.refusals + 4, longest_poison_pause);
}

char const* kind_of(operation const& op) {
    if (op.what == operation::kind::acquire) {
        return "acquire";
    }
    return op.reason == release_reason::unsubscribed ? "unsubscribed" : "disconnected";
}

void append(operations& to, operations& from) {
    to.splice(to.end(), from);
}

} // namespace

transition_batch::transition_batch(connection& link, transition_queue& queue, observer& watcher,
                                   std::string const& node, milliseconds call_timeout)
    : link_{link}
    , queue_{queue}
    , watcher_{watcher}
    , node_{node}
    , call_timeout_{call_timeout} {}

void transition_batch::answer(operations& from, operations::iterator it, lease_outcome outcome) {
    answers_.add(*it->box, {it->key, outcome});
    it->changed_nothing = it->changed_nothing || outcome == lease_outcome::refused;
    finished_.splice(finished_.end(), from, it);
}

transition_batch::leftover& transition_batch::run(operations& batch, bool waits) {
    left_.locked = left_.late = left_.failed = false;
    parts_.emplace_front();
    append(parts_.front(), batch);
    while (!parts_.empty()) {
        send(parts_.front(), waits);
        parts_.remove_if([](auto const& part) { return part.empty(); });
    }
    if (std::exchange(doubted_, false)) {
        link_.replace();
    }
    deliver();
    return left_;
}

// The request whose call failed may have been taken back, and nobody may ever send another.
void transition_batch::prove() {
    if (!link_.is_unproven() || !link_.is_usable()) {
        return;
    }
    std::string const none{"{}"};
    auto const not_after = link_.database_time() + request_validity(call_timeout_).count();
    try {
        link_.call(statements::transition,
                   {none, none, none, none, none, node_, std::to_string(not_after), "false"});
    } catch (call_failure const& e) {
        spdlog::debug("empty transition failed sqlstate={} reason=\"{}\"", e.sqlstate(), e.what());
    }
}

void transition_batch::deliver() {
    for (; !dropped_.empty(); dropped_.pop_front()) {
        auto const& op = dropped_.front();
        answers_.add(*op.box, {op.key, lease_outcome::abandoned});
    }
    // Off the books first: whoever reads the answer may ask for the next thing at once.
    queue_.finish(finished_);
    finished_.clear();
    answers_.deliver();
}

void transition_batch::put_down(operations& batch) noexcept {
    if (!parts_.empty()) {
        for (auto& op : parts_.front()) {
            op.maybe_done = true; // nobody knows where the call ended
        }
    }
    for (auto& part : parts_) {
        append(batch, part);
    }
    parts_.clear();
    for (auto* const rest : {&one_, &left_.busy, &left_.again, &left_.poisoned, &left_.overran}) {
        append(batch, *rest);
    }
    queue_.give_back(batch, dropped_);
    doubted_ = false;
    link_.replace();
}

void transition_batch::give_back(operations& again) {
    queue_.give_back(again, dropped_);
    deliver();
}

void transition_batch::defer(operations& busy, milliseconds pause) {
    queue_.defer(busy, pause, dropped_);
    deliver();
}

void transition_batch::delay(operations& later, milliseconds pause) {
    queue_.delay(later, pause, dropped_);
    deliver();
}

void transition_batch::suspect(operations& stuck, char const* cause, milliseconds pause) {
    if (!stuck.empty()) {
        auto const agent = stuck.front().agent;
        if (queue_.suspect(stuck, pause, dropped_)) {
            tell_suspect(agent, cause);
        }
    }
    deliver();
}

void transition_batch::tell_suspect(agent_id agent, char const* cause) {
    if (auto const more = suspicions_.admit()) {
        spdlog::warn("agent suspected agent={} cause={}{}", agent, cause, *more);
    }
}

void transition_batch::set_aside(operations& poisoned) {
    while (one_by_one(poisoned)) {
        queue_.delay(one_, poison_pause(one_.front()), dropped_);
    }
    deliver();
}

void transition_batch::back_off(operations& held, milliseconds longest) {
    while (one_by_one(held)) {
        queue_.defer(one_, pause_after(one_.front().failures++, longest), dropped_);
    }
    deliver();
}

void transition_batch::suspect_each(operations& stuck, milliseconds longest) {
    while (one_by_one(stuck)) {
        suspect(one_, "lock", pause_after(one_.front().failures++, longest));
    }
    deliver();
}

bool transition_batch::one_by_one(operations& from) {
    if (from.empty()) {
        return false;
    }
    one_.splice(one_.end(), from, from.begin());
    return true;
}

void transition_batch::send(operations& part, bool waits) {
    if (!link_.is_usable()) {
        append(left_.again, part);
        return;
    }
    array_literal kinds;
    array_literal agents;
    array_literal tokens;
    array_literal session_ids;
    array_literal owners;
    for (auto const& op : part) {
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
    auto const began = steady_clock::now();
    try {
        auto const not_after = link_.database_time() + request_validity(call_timeout_).count();
        auto const reply =
            link_.call(statements::transition,
                       {kinds.take(), agents.take(), tokens.take(), session_ids.take(),
                        owners.take(), node_, std::to_string(not_after), waits ? "true" : "false"},
                       true);
        sort(part, reply);
    } catch (unreadable_answer const& e) {
        doubted_ = true; // the session's plans may be of another schema
        if (part.size() > 1) {
            for (auto& op : part) {
                op.maybe_done = true;
            }
            split(part);
        } else {
            puzzle(part, part.begin(), e.what());
        }
    } catch (call_failure const& e) {
        for (auto& op : part) {
            op.maybe_done = op.maybe_done || !e.outcome_known();
        }
        auto const took = duration_cast<milliseconds>(steady_clock::now() - began);
        switch (judge(e, part.size(), waits, took, call_timeout_)) {
        case call_verdict::split:
            split(part);
            return;
        case call_verdict::blame:
            blame(part, e);
            return;
        case call_verdict::overran:
            append(left_.overran, part);
            return;
        case call_verdict::busy:
            append(left_.busy, part);
            return;
        case call_verdict::locked:
            left_.locked = true;
            break;
        case call_verdict::late:
            left_.late = true;
            break;
        case call_verdict::failed:
            left_.failed = true;
            break;
        }
        append(left_.again, part);
    }
}

// In place: what is not in one part is in another.
void transition_batch::split(operations& part) {
    auto const size = part_size(part.size());
    while (part.size() > size) {
        auto& rest = *parts_.emplace(std::next(parts_.begin()));
        rest.splice(rest.end(), part, std::prev(part.end(), static_cast<std::ptrdiff_t>(size)),
                    part.end());
    }
}

void transition_batch::sort(operations& part, rows const& reply) {
    // All of it is read before any of it counts.
    answer_row const columns{reply, 4};
    auto const at = columns.number(0);
    auto const outcomes = columns.elements(1);
    auto const flips = parse_flips(columns.elements(2));
    if (outcomes.size() != part.size()) {
        throw unreadable_answer{std::to_string(outcomes.size()) + " outcomes for " +
                                std::to_string(part.size()) + " requests"};
    }
    link_.note_database_time(at);
    for (auto const& f : flips) {
        watcher_.flipped(f.active, f.reason);
        spdlog::debug("routing flipped agent={} flag={} reason={}", f.agent,
                      f.active ? "on" : "off", f.reason);
    }
    auto outcome = outcomes.begin();
    for (auto it = part.begin(); it != part.end(); ++outcome) {
        auto const here = it++;
        std::string_view const said = *outcome;
        if (said == "acquired") {
            answer(part, here, lease_outcome::acquired);
        } else if (said == "refused") {
            answer(part, here, lease_outcome::refused);
        } else if (said == "released" || said == "gone") {
            here->changed_nothing = said == "gone";
            answer(part, here, here->released_outcome());
        } else if (said == "busy") {
            left_.busy.splice(left_.busy.end(), part, here);
        } else if (said == "late") {
            left_.again.splice(left_.again.end(), part, here);
        } else {
            doubted_ = true;
            puzzle(part, here, "an outcome that this version does not know");
        }
    }
}

// It committed something, and nobody knows what. Asked again alone and after a pause, until an
// answer is understood: that one says what there is.
void transition_batch::puzzle(operations& part, operations::iterator it, char const* why) {
    it->maybe_done = true;
    ++it->refusals;
    if (auto const more = puzzles_.admit()) {
        spdlog::error("transition answer not understood agent={} what={} why=\"{}\" retry_ms={}{}",
                      it->agent, kind_of(*it), why, poison_pause(*it).count(), *more);
    }
    left_.poisoned.splice(left_.poisoned.end(), part, it);
}

void transition_batch::blame(operations& one, call_failure const& e) {
    auto const it = one.begin();
    if (auto const more = refusals_.admit()) {
        // Errors about data (class 22) quote what the client sent.
        spdlog::warn("transition refused agent={} what={} sqlstate={} reason=\"{}\"{}", it->agent,
                     kind_of(*it), e.sqlstate(),
                     e.sqlstate().starts_with("22") ? "data that PostgreSQL refuses" : e.what(),
                     *more);
    }
    doubted_ = doubted_ || e.is_doubtful();
    if (it->what == operation::kind::acquire && e.is_bad_data()) {
        answer(one, it, lease_outcome::refused);
    } else {
        ++it->refusals;
        append(left_.poisoned, one);
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
    , thread_{base::start_thread("the database", [this] {
        keep_going(
            "transition", stop_, [this] { return step(); }, [this] { batch_.put_down(work_); });
    })} {}

bool transition_lane::step() {
    batch_.deliver();
    if (!link_.connect(stop_)) {
        return false;
    }
    queue_.take(number_, pacing_.limit(), work_);
    if (work_.empty()) {
        if (stop_.is_raised()) {
            return false;
        }
        batch_.prove();
        return true; // idle: does the session live?
    }
    auto const size = work_.size();
    watcher_.batch("transition", size);
    return put_back(batch_.run(work_, false), size);
}

// Returns false when stopped.
bool transition_lane::put_back(transition_batch::leftover& left, std::size_t size) {
    lane_pacing::account account;
    account.requests = size;
    account.overran = !left.overran.empty();
    account.again = !left.again.empty();
    account.locked = left.locked;
    account.late = left.late;
    account.failed = left.failed;
    if (account.again) {
        auto& first = left.again.front();
        account.failures = first.failures;
        if (size == 1 && (left.late || left.failed)) {
            ++first.failures;
        }
    }
    auto const verdict = pacing_.after(account);
    batch_.defer(left.busy, milliseconds{0});
    batch_.suspect(left.overran, "overran", milliseconds{0});
    batch_.set_aside(left.poisoned);
    switch (verdict.again) {
    case lane_pacing::decision::way::front:
        batch_.give_back(left.again);
        break;
    case lane_pacing::decision::way::delay:
        batch_.delay(left.again, verdict.pause);
        break;
    case lane_pacing::decision::way::suspect:
        batch_.suspect(left.again, "lock", milliseconds{0});
        break;
    }
    return verdict.rest.count() == 0 || !stop_.wait_for(verdict.rest);
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
    , thread_{base::start_thread("the database", [this] {
        keep_going(
            "busy", stop_, [this] { return step(); }, [this] { batch_.put_down(work_); });
    })} {}

// Each round first passes over whatever is still held, so that nobody who is free by now waits
// for a stuck one, and then waits a little for one agent: under contention, passing over alone
// might never get a turn.
bool busy_lane::step() {
    batch_.deliver();
    if (!link_.connect(stop_)) {
        return false;
    }
    queue_.take_busy(lane_pacing::batch_limit, work_);
    if (work_.empty()) {
        if (stop_.is_raised()) {
            return false;
        }
        batch_.prove();
        return true; // idle: does the session live?
    }
    watcher_.batch("busy", work_.size());
    auto& left = batch_.run(work_, false);
    if (left.busy.empty()) {
        put_back(left);
        return true;
    }
    auto const chosen = left.busy.front().agent; // it has waited longest
    for (auto it = left.busy.begin(); it != left.busy.end();) {
        auto const here = it++;
        if (here->agent == chosen) {
            work_.splice(work_.end(), left.busy, here);
        }
    }
    put_back(left);
    put_back(batch_.run(work_, true));
    return true;
}

void busy_lane::put_back(transition_batch::leftover& left) {
    batch_.back_off(left.busy, longest_busy_pause);
    if (left.locked) {
        // They pass over agents and rows that are held: a trigger of one of them waits, or all do
        // for a table. From now on these agents are tried one by one.
        batch_.suspect_each(left.again, longest_busy_pause);
    }
    batch_.back_off(left.again, longest_busy_pause);
    batch_.set_aside(left.poisoned);
    bool const alone = std::all_of(left.overran.begin(), left.overran.end(), [&](auto const& op) {
        return op.agent == left.overran.front().agent;
    });
    batch_.suspect(left.overran, "overran",
                   alone ? suspect_pause * call_timeout_ : milliseconds{0});
}

} // namespace presenced::db
