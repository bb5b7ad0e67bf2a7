#include "db/store/renewal_pacing.hpp"

#include "db/session/connection.hpp"

#include <algorithm>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds longest_pause{30'000};

bool contains(std::vector<std::string> const& sorted, lease_token const& token) {
    return std::binary_search(sorted.begin(), sorted.end(), token.view());
}

} // namespace

renewal_pacing::renewal_pacing(settings const& s, time_point now)
    : settings_{s}
    , next_tick_{now}
    , not_before_{now} {}

bool renewal_pacing::add(renew_request const& request, time_point now) {
    if (auto const held = held_.find(request.token); held != held_.end()) {
        held->second.key = request.key; // with its next try
        return false;
    }
    waiting_.insert_or_assign(request.token, renewal{request.agent, request.box, request.key, now});
    // Those in between change nothing of when the batch goes out.
    return waiting_.size() == 1 || waiting_.size() == batch_limit;
}

void renewal_pacing::forget(lease_token const& token) {
    waiting_.erase(token);
    held_.erase(token);
    if (auto const flying = in_flight_.find(token); flying != in_flight_.end()) {
        flying->second.forgotten = true;
    }
}

// ---- When -------------------------------------------------------------------------------------

renewal_pacing::time_point renewal_pacing::due_at() const {
    return waiting_.empty() ? next_tick_ : std::min(next_tick_, not_before_);
}

bool renewal_pacing::is_due(time_point now) const {
    return due_at() <= now || waiting_.size() >= batch_limit;
}

bool renewal_pacing::take_tick(time_point now) {
    if (now < next_tick_) {
        return false;
    }
    next_tick_ = now + settings_.tick;
    return true;
}

// ---- What -------------------------------------------------------------------------------------

renewal_pacing::batch renewal_pacing::take(time_point now) {
    batch taken;
    taken.reserve(std::min(batch_limit, waiting_.size()));
    auto it = waiting_.lower_bound(cursor_);
    while (taken.size() < batch_limit && !waiting_.empty()) {
        if (it == waiting_.end()) {
            if (!taken.empty()) {
                break; // the next batch begins at the front, or this one would not be sorted
            }
            it = waiting_.begin();
        }
        auto const here = it++;
        taken.push_back({here->first, here->second.agent});
        in_flight_.insert(waiting_.extract(here));
    }
    cursor_ = it == waiting_.end() ? lease_token{} : it->first;
    // They are in no hurry, and each alone would be a transaction of its own.
    not_before_ = now + settings_.gathering;
    return taken;
}

void renewal_pacing::begin_round(time_point now) {
    round_.clear();
    for (auto const& [token, r] : held_) {
        if (r.not_before <= now) {
            round_[r.at_most].push_back(token);
        }
    }
    for (auto& [at_most, tokens] : round_) {
        std::reverse(tokens.begin(), tokens.end()); // they are taken from the end
    }
}

renewal_pacing::batch renewal_pacing::take_of_round() {
    batch taken;
    while (taken.empty() && !round_.empty()) {
        auto& [at_most, tokens] = *round_.begin();
        while (!tokens.empty() && taken.size() < at_most) {
            if (auto const held = held_.find(tokens.back()); held != held_.end()) {
                taken.push_back({held->first, held->second.agent});
            }
            tokens.pop_back();
        }
        if (tokens.empty()) {
            round_.erase(round_.begin());
        }
    }
    return taken;
}

// ---- What became of it ------------------------------------------------------------------------

// Nobody: it was held and has been forgotten.
renewal_pacing::renewal* renewal_pacing::find_out(lease_token const& token) {
    if (auto const held = held_.find(token); held != held_.end()) {
        return &held->second;
    }
    auto const flying = in_flight_.find(token);
    return flying == in_flight_.end() ? nullptr : &flying->second;
}

void renewal_pacing::answered(batch const& sent, std::vector<std::string> const& missing,
                              std::vector<std::string> const& held, lease_answers& answers) {
    batch passed_over;
    for (auto const& e : sent) {
        if (contains(held, e.token)) {
            passed_over.push_back(e);
        } else if (auto const* const r = find_out(e.token)) {
            answers.add(*r->box, {r->key, contains(missing, e.token) ? lease_outcome::missing
                                                                     : lease_outcome::renewed});
            held_.erase(e.token);
            in_flight_.erase(e.token);
        }
    }
    hold(passed_over);
}

void renewal_pacing::give_back(batch const& sent) noexcept {
    for (auto const& e : sent) {
        auto flying = in_flight_.extract(e.token);
        if (!flying.empty() && !flying.mapped().forgotten && !held_.contains(e.token)) {
            waiting_.insert(std::move(flying)); // unless it was asked for anew
        }
    }
}

void renewal_pacing::hold(batch const& sent) noexcept {
    for (auto const& e : sent) {
        auto flying = in_flight_.extract(e.token);
        if (!flying.empty() && !flying.mapped().forgotten) {
            held_.insert(std::move(flying));
        }
    }
}

milliseconds renewal_pacing::put_off(batch const& sent, bool overran, time_point now) {
    milliseconds pause{0};
    for (auto const& e : sent) {
        auto* const r = find_out(e.token);
        if (r == nullptr) {
            continue;
        }
        if (sent.size() > 1) {
            r->at_most = part_size(sent.size());
            continue;
        }
        pause = overran ? longest_pause
                        : std::min(longest_pause,
                                   milliseconds{1'000} * (1 << std::min(r->failures, 5U)));
        ++r->failures;
        r->at_most = 1;
        r->not_before = now + pause;
    }
    hold(sent);
    return pause;
}

void renewal_pacing::abort() noexcept {
    round_.clear();
    while (!in_flight_.empty()) {
        auto flying = in_flight_.extract(in_flight_.begin());
        if (!flying.mapped().forgotten && !held_.contains(flying.key())) {
            waiting_.insert(std::move(flying));
        }
    }
}

// ---- Questions --------------------------------------------------------------------------------

// Those whose rows are held, and those whose turn has not come for long: there was evidence of
// their clients when they were asked for, and slow calls for others are not to cost them their
// rows.
std::vector<std::string_view> renewal_pacing::vouched(time_point now) const {
    std::vector<std::string_view> tokens;
    for (auto const& [token, r] : waiting_) {
        if (r.since < now - settings_.overdue) {
            tokens.push_back(token.view());
        }
    }
    for (auto const& [token, r] : held_) {
        tokens.push_back(token.view());
    }
    return tokens;
}

renewal_pacing::time_point renewal_pacing::oldest(time_point now) const {
    auto first = now;
    for (auto const* const some : {&waiting_, &in_flight_}) {
        for (auto const& [token, r] : *some) {
            first = std::min(first, r.since);
        }
    }
    return first;
}

renewal_verdict judge_renewal(call_failure const& failure, std::size_t renewals, bool skip_locked,
                              bool tick, bool may_tick) {
    if (failure.is_overrun() && renewals > 0) {
        return renewal_verdict::put_off;
    }
    if (failure.kind() == fault::element && renewals > 0) {
        if (failure.is_doubtful() && may_tick) {
            return renewal_verdict::ask_tick;
        }
        return renewals > 1 ? renewal_verdict::split : renewal_verdict::put_off;
    }
    if (!failure.is_lock_timeout()) {
        return renewal_verdict::give_back;
    }
    if (!skip_locked) {
        return renewal_verdict::pass_over;
    }
    if (tick && renewals > 0) {
        return renewal_verdict::without_tick; // renewals come first
    }
    return renewals > 0 && may_tick ? renewal_verdict::ask_tick_slowly : renewal_verdict::rest;
}

} // namespace presenced::db
