#include "db/store/batch_pacing.hpp"

#include "db/session/connection.hpp"

#include <algorithm>
#include <functional>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

// How long an agent whose calls took too long is kept away from the others after that.
constexpr std::chrono::minutes suspicion_time{2};

// How long a lane remembers that it was shared.
constexpr std::chrono::seconds sharing_time{1};

// A call that meets a lock that it cannot pass over has waited for it as long as a lane may. The
// holder gets a little time before the next one.
constexpr milliseconds rest_after_lock{50};
constexpr milliseconds longest_pause{1'000};
// A commit may wait for a standby, or in line behind other commits. A batch that is late so many
// times in a row may yet hold a request whose trigger runs at commit, and that one is to be found.
constexpr unsigned late_at_most = 3;

std::size_t hash(lease_token const& token) {
    return std::hash<std::string_view>{}(token.view());
}

std::size_t half(std::size_t n) {
    return std::max<std::size_t>(1, n / 2);
}

} // namespace

milliseconds pause_after(unsigned failures, milliseconds longest) {
    return std::min(longest, milliseconds{25} * (1 << std::min(failures, 12U)));
}

// ---- What waits -------------------------------------------------------------------------------

batch_pacing::batch_pacing(unsigned lanes)
    : lanes_(std::max(lanes, 1U))
    , acquires_(0, &hash) {}

unsigned batch_pacing::lane_of(agent_id agent) const {
    return static_cast<unsigned>(static_cast<std::uint64_t>(agent) % lanes_.size());
}

std::size_t batch_pacing::depth(unsigned number) const {
    return lanes_[number].waiting + lanes_[number].delayed.size();
}

batch_pacing::ring& batch_pacing::ring_of(unsigned number) {
    return number < lanes_.size() ? lanes_[number].owners : busy_owners_;
}

batch_pacing::owner& batch_pacing::owner_of(owner_id id) {
    auto const known = owners_.find(id);
    if (known != owners_.end()) {
        return known->second;
    }
    std::vector<turns> nodes(lanes_.size() + 1);
    for (auto& node : nodes) {
        node.push_back(nullptr);
    }
    auto& made = owners_[id];
    made.id = id;
    made.lines.resize(nodes.size());
    for (unsigned n = 0; n < nodes.size(); ++n) {
        auto& one = made.lines[n];
        one.whose = &made;
        one.turn = nodes[n].begin();
        *one.turn = &one;
        auto& idle = ring_of(n).idle;
        idle.splice(idle.end(), nodes[n]);
    }
    return made;
}

// An owner that waits for nothing is not kept.
void batch_pacing::forget(operation const& op, bool is_acquire) {
    auto const known = owners_.find(op.owner);
    auto& whose = known->second;
    if (is_acquire && --whose.acquires == 0) {
        --acquiring_owners_;
    }
    if (--whose.unanswered > 0) {
        return;
    }
    for (unsigned n = 0; n < whose.lines.size(); ++n) {
        auto& owners = ring_of(n);
        auto const& one = whose.lines[n];
        (one.in_turn ? owners.waiting : owners.idle).erase(one.turn);
    }
    owners_.erase(known);
}

void batch_pacing::enter(ring& owners, line& one, bool in_front) {
    if (!one.in_turn) {
        one.in_turn = true;
        owners.waiting.splice(in_front ? owners.waiting.begin() : owners.waiting.end(), owners.idle,
                              one.turn);
    }
}

void batch_pacing::leave(ring& owners, line& one) {
    one.in_turn = false;
    owners.idle.splice(owners.idle.end(), owners.waiting, one.turn);
}

void batch_pacing::put(operations& home, place where, operations& from, operations::iterator it,
                       bool in_front) {
    if (it->what == operation::kind::acquire) {
        auto& known = acquires_.find(it->token)->second;
        known.where = where;
        known.home = &home;
        known.it = it;
    }
    home.splice(in_front ? home.begin() : home.end(), from, it); // iterators stay good
}

void batch_pacing::depart(operations& from, operations::iterator it, operations& batch) {
    if (it->what == operation::kind::acquire) {
        auto& known = acquires_.find(it->token)->second;
        known.where = place::in_flight;
        known.home = nullptr;
    }
    batch.splice(batch.end(), from, it);
}

bool batch_pacing::add(acquire_request request) {
    if (acquires_.size() >= acquire_limit) {
        auto const known = owners_.find(request.owner);
        auto const own = known == owners_.end() ? 0 : known->second.acquires;
        auto const owners = acquiring_owners_ + (own == 0 ? 1 : 0);
        if (own >= acquire_limit / owners || acquires_.size() >= most_acquires) {
            return false;
        }
    }
    operations one;
    one.push_back({.what = operation::kind::acquire,
                   .agent = request.agent,
                   .owner = request.owner,
                   .token = request.token,
                   .session_id = std::move(request.session_id),
                   .box = request.box,
                   .key = request.key});
    add(std::move(one));
    return true;
}

void batch_pacing::add(release_request const& request) {
    operations one;
    one.push_back({.what = operation::kind::release,
                   .reason = request.reason,
                   .agent = request.agent,
                   .owner = request.owner,
                   .token = request.token,
                   .session_id = {},
                   .box = request.box,
                   .key = request.key});
    add(std::move(one));
}

void batch_pacing::add(operations one) {
    auto const& op = one.front();
    auto const number = lane_of(op.agent);
    auto& whose = owner_of(op.owner);
    if (op.what == operation::kind::acquire) {
        acquires_.insert_or_assign(op.token, whereabouts{place::in_flight, nullptr, {}});
        if (whose.acquires++ == 0) {
            ++acquiring_owners_;
        }
    } else {
        ++releases_;
    }
    ++whose.unanswered;
    auto& home = whose.lines[number];
    put(home.waiting, place::lane, one, one.begin(), false);
    ++lanes_[number].waiting;
    enter(lanes_[number].owners, home);
}

std::optional<operation> batch_pacing::abandon(lease_token const& token) {
    auto const known = acquires_.find(token);
    if (known == acquires_.end()) {
        return std::nullopt; // its answer is on its way
    }
    auto const [where, home, it, was_abandoned] = known->second;
    if (where == place::in_flight) {
        known->second.abandoned = true;
        return std::nullopt;
    }
    if (it->maybe_done) {
        convert(*it);
        return std::nullopt;
    }
    operation op = std::move(*it);
    home->erase(it);
    acquires_.erase(known);
    if (where == place::lane) {
        --lanes_[lane_of(op.agent)].waiting;
    } else if (where == place::busy) {
        --busy_count_;
        auto& whose = owners_.at(op.owner);
        if (home->empty()) {
            whose.due.erase({whose.busy.at(op.agent).due, op.agent});
            whose.busy.erase(op.agent);
        }
    }
    forget(op, true);
    return op;
}

// What may have been done has to be undone, and is not dropped until it is.
void batch_pacing::convert(operation& op) {
    acquires_.erase(op.token);
    auto& whose = owners_.at(op.owner);
    if (--whose.acquires == 0) {
        --acquiring_owners_;
    }
    op.what = operation::kind::release;
    op.reason = release_reason::disconnected;
    op.abandoned = true;
    ++releases_;
}

void batch_pacing::drop_abandoned(operations& batch, operations& dropped) {
    for (auto it = batch.begin(); it != batch.end();) {
        auto const here = it++;
        if (here->what != operation::kind::acquire) {
            continue;
        }
        auto const known = acquires_.find(here->token);
        if (!known->second.abandoned) {
            continue;
        }
        if (here->maybe_done) {
            convert(*here);
        } else {
            acquires_.erase(known);
            forget(*here, true);
            dropped.splice(dropped.end(), batch, here);
        }
    }
}

void batch_pacing::finish(operations const& batch) {
    for (auto const& op : batch) {
        if (!op.changed_nothing) { // else nothing had to wait for what holds up the agent
            suspects_.erase(op.agent);
        }
        bool const is_acquire = op.what == operation::kind::acquire;
        if (is_acquire) {
            acquires_.erase(op.token);
        } else {
            --releases_;
        }
        forget(op, is_acquire);
    }
}

// ---- Lanes ------------------------------------------------------------------------------------

void batch_pacing::take_delayed(lane& from, time_point now, operations& batch) {
    while (batch.empty() && !from.delayed.empty() && from.delayed.begin()->first <= now) {
        auto const due = from.delayed.begin();
        if (!due->second.empty()) {
            depart(due->second, due->second.begin(), batch);
        }
        from.delayed.erase(due);
    }
}

void batch_pacing::next(unsigned number, std::size_t limit, time_point now, operations& batch) {
    auto& from = lanes_[number];
    if (from.delayed_next || from.waiting == 0) {
        take_delayed(from, now, batch);
    }
    from.delayed_next = batch.empty();
    if (!from.delayed_next) {
        return;
    }
    auto& owners = from.owners;
    auto const at_most = now < from.shared_until ? share : limit;
    ++from.batches;
    std::size_t served = 0; // lines in a row that have had their share
    while (served < owners.waiting.size() && batch.size() < limit) {
        auto& one = *owners.waiting.front();
        if (one.batch != from.batches) {
            one.batch = from.batches;
            one.taken = 0;
        }
        if (one.taken >= at_most) {
            owners.waiting.splice(owners.waiting.end(), owners.waiting, one.turn);
            ++served;
            continue;
        }
        served = 0;
        if (!one.waiting.empty()) {
            if (from.latest && *from.latest != one.whose->id) {
                from.shared_until = now + sharing_time;
            }
            from.latest = one.whose->id;
            auto const first = one.waiting.begin();
            if (suspicion_of(first->agent, now) != nullptr) {
                put_busy(one.waiting, first, now, now);
            } else {
                depart(one.waiting, first, batch);
                ++one.taken;
            }
            --from.waiting;
        }
        if (one.waiting.empty()) {
            leave(owners, one);
        } else {
            owners.waiting.splice(owners.waiting.end(), owners.waiting, one.turn);
        }
    }
}

batch_pacing::time_point batch_pacing::next_due(unsigned number) const {
    auto const& delayed = lanes_[number].delayed;
    return delayed.empty() ? time_point::max() : delayed.begin()->first;
}

void batch_pacing::give_back(operations& batch, operations& dropped) {
    drop_abandoned(batch, dropped);
    // Of any lane and owner; each goes back where it came from, the last one first.
    while (!batch.empty()) {
        auto const last = std::prev(batch.end());
        auto const number = lane_of(last->agent);
        auto& home = owners_.at(last->owner).lines[number];
        put(home.waiting, place::lane, batch, last, true);
        ++lanes_[number].waiting;
        enter(lanes_[number].owners, home, true);
    }
}

void batch_pacing::delay(operations& batch, time_point due, operations& dropped) {
    drop_abandoned(batch, dropped);
    while (!batch.empty()) {
        auto const first = batch.begin();
        auto& home = lanes_[lane_of(first->agent)].delayed.emplace(due, operations{})->second;
        put(home, place::delayed, batch, first, false);
    }
}

// ---- The busy lane ----------------------------------------------------------------------------

batch_pacing::suspicion const* batch_pacing::suspicion_of(agent_id agent, time_point now) const {
    auto const known = suspects_.find(agent);
    return known != suspects_.end() && known->second.ends > now ? &known->second : nullptr;
}

bool batch_pacing::is_suspect(agent_id agent, time_point now) const {
    return suspicion_of(agent, now) != nullptr;
}

void batch_pacing::set_due(owner& whose, agent_id agent, time_point due) {
    auto& entry = whose.busy.at(agent);
    if (entry.due != due) {
        whose.due.emplace(due, agent); // first: it may throw
        whose.due.erase({entry.due, agent});
        entry.due = due;
    }
}

// Where its agent waits already, both go when the first of them is due.
void batch_pacing::put_busy(operations& from, operations::iterator it, time_point due,
                            time_point now) {
    auto const agent = it->agent;
    if (auto const* const suspected = suspicion_of(agent, now)) {
        due = std::max(due, suspected->not_before);
    }
    auto& whose = owners_.at(it->owner);
    auto& entry = whose.busy[agent];
    set_due(whose, agent, std::min(entry.due, due));
    put(entry.waiting, place::busy, from, it, false);
    ++busy_count_;
    enter(busy_owners_, whose.lines.back());
}

// What is left of the agent's goes behind its owner's other agents.
void batch_pacing::take_busy_of(owner& whose, agent_id agent, std::size_t count, time_point now,
                                operations& batch) {
    auto& entry = whose.busy.at(agent);
    if (count < entry.waiting.size()) {
        set_due(whose, agent, now);
    }
    for (; count > 0 && !entry.waiting.empty(); --count) {
        depart(entry.waiting, entry.waiting.begin(), batch);
        --busy_count_;
    }
    if (entry.waiting.empty()) {
        whose.due.erase({entry.due, agent});
        whose.busy.erase(agent);
    }
}

void batch_pacing::next_busy(std::size_t limit, time_point now, operations& batch) {
    auto& owners = busy_owners_.waiting;
    // The first agent of an owner that is due, and is a suspect or is none.
    auto const due_of = [&](owner const& whose, bool suspected) {
        for (auto it = whose.due.begin(); it != whose.due.end() && it->first <= now; ++it) {
            if ((suspicion_of(it->second, now) != nullptr) == suspected) {
                return it;
            }
        }
        return whose.due.end();
    };
    owner* held_up = nullptr; // whose suspect has waited longest
    std::pair<time_point, agent_id> suspected{time_point::max(), 0};
    if (!suspects_.empty()) {
        for (auto* const one : owners) {
            auto const found = due_of(*one->whose, true);
            if (found != one->whose->due.end() && *found < suspected) {
                suspected = *found;
                held_up = one->whose;
            }
        }
    }
    if (held_up == nullptr || !suspect_next_) {
        // With one owner alone its first agent may fill the batch.
        auto const each = std::max<std::size_t>(1, limit / std::max<std::size_t>(1, owners.size()));
        for (auto left = owners.size(); left > 0 && batch.size() < limit; --left) {
            auto& one = *owners.front();
            auto& whose = *one.whose;
            if (whose.busy.empty()) {
                leave(busy_owners_, one);
                continue;
            }
            owners.splice(owners.end(), owners, one.turn);
            auto const found = due_of(whose, false);
            if (found != whose.due.end()) {
                take_busy_of(whose, found->second, std::min(each, limit - batch.size()), now,
                             batch);
                left = owners.size() + 1; // there may be more of everybody's
            }
        }
    }
    if (held_up != nullptr && batch.empty()) {
        take_busy_of(*held_up, suspected.second, limit, now, batch);
        // Owners that wait for the same suspect are due at the same time: they take turns.
        owners.splice(owners.end(), owners, held_up->lines.back().turn);
        suspect_next_ = false;
    } else {
        suspect_next_ = true;
    }
}

batch_pacing::time_point batch_pacing::next_busy_due() const {
    auto first = time_point::max();
    for (auto const* const one : busy_owners_.waiting) {
        if (!one->whose->due.empty()) {
            first = std::min(first, one->whose->due.begin()->first);
        }
    }
    return first;
}

void batch_pacing::defer(operations& batch, time_point due, operations& dropped) {
    drop_abandoned(batch, dropped);
    while (!batch.empty()) {
        put_busy(batch, batch.begin(), due, due);
    }
}

bool batch_pacing::suspect(operations& batch, time_point now, milliseconds pause,
                           operations& dropped) {
    bool news = false;
    std::erase_if(suspects_, [now](auto const& s) { return s.second.ends <= now; });
    for (auto const& op : batch) {
        news = suspects_.insert_or_assign(op.agent, suspicion{now + suspicion_time, now + pause})
                   .second ||
               news;
        // What came while the call was under way waits with it, whoever asked.
        for (auto* const one : busy_owners_.waiting) {
            if (one->whose->busy.contains(op.agent)) {
                set_due(*one->whose, op.agent, now + pause);
            }
        }
    }
    defer(batch, now + pause, dropped);
    return news;
}

// ---- Calls and lanes --------------------------------------------------------------------------

call_verdict judge(call_failure const& failure, std::size_t requests, bool waits, milliseconds took,
                   milliseconds call_timeout) {
    if (failure.kind() == fault::element) {
        return requests > 1 ? call_verdict::split : call_verdict::blame;
    }
    if (failure.is_overrun()) {
        return call_verdict::overran;
    }
    if (failure.is_lock_timeout()) {
        return waits ? call_verdict::busy : call_verdict::locked;
    }
    if (failure.kind() == fault::connection && took > call_timeout) {
        return call_verdict::late;
    }
    return call_verdict::failed;
}

lane_pacing::decision lane_pacing::after(account const& batch) {
    auto const size = batch.requests;
    late_in_a_row_ = batch.late ? late_in_a_row_ + 1 : 0;
    bool const shrinks = batch.failed || late_in_a_row_ > late_at_most;
    if (batch.overran) {
        limit_ = half(size);
    } else if (searched_ > size) {
        searched_ -= size;
    } else if (!batch.again) {
        searched_ = 0;
        limit_ = std::min(batch_limit, limit_ * 2);
    }
    if (!batch.again) {
        return {};
    }
    if (batch.locked && size == 1) {
        // It need not be the table's lock: a trigger of somebody else's may wait for what it
        // likes. The busy lane does not wait as long.
        return {decision::way::suspect};
    }
    if (shrinks && size == 1 && batch.failures >= 2) {
        // Alone, and it still does not get through: the others come first.
        return {decision::way::delay, pause_after(batch.failures + 1, longest_pause)};
    }
    if (batch.locked) {
        limit_ = part_size(size); // to the culprit in few steps: each waits for its lock
        searched_ = size;
        return {decision::way::front, milliseconds{0}, rest_after_lock};
    }
    if (shrinks) {
        limit_ = half(size);
    }
    return {};
}

} // namespace presenced::db
