#include "db/store/batch_pacing.hpp"

#include "db/session/connection.hpp"

#include <algorithm>
#include <functional>
#include <limits>
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
    std::set<std::pair<time_point, owner*>> waking{{time_point::max(), nullptr}};
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
    auto node = waking.extract(waking.begin());
    node.value().second = &made;
    waking_.insert(std::move(node));
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
    waking_.erase({whose.wakes, &whose});
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
        if (home->empty()) {
            remove_busy(busy_.find({op.agent, op.owner}));
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
        // A call that changed nothing did not have to wait for what holds up the agent.
        if (!op.changed_nothing && suspects_.erase(op.agent) > 0) {
            clear_suspect(op.agent);
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

batch_pacing::due_entries& batch_pacing::entries_of(busy_agent& one) {
    return one.is_suspect ? suspects_due_ : one.entry.whose->due;
}

// Does not throw: nodes are moved, not made.
void batch_pacing::move_entry(busy_agent& one, due_entry entry, bool is_suspect) {
    auto node = entries_of(one).extract(one.entry);
    node.value() = entry;
    one.entry = entry;
    one.is_suspect = is_suspect;
    entries_of(one).insert(std::move(node));
    set_waking(*entry.whose);
}

// An owner whose turn comes anyway is not waked. Does not throw.
void batch_pacing::set_waking(owner& whose) {
    bool const sleeps = !whose.lines.back().in_turn && !whose.due.empty();
    auto const wakes = sleeps ? whose.due.begin()->due : time_point::max();
    if (wakes != whose.wakes) {
        auto node = waking_.extract({whose.wakes, &whose});
        node.value().first = wakes;
        whose.wakes = wakes;
        waking_.insert(std::move(node));
    }
}

// What waits for the agent takes turns with the others again. Does not throw.
void batch_pacing::clear_suspect(agent_id agent) {
    for (auto it = busy_.lower_bound({agent, std::numeric_limits<owner_id>::min()});
         it != busy_.end() && it->first.first == agent; ++it) {
        move_entry(it->second, it->second.entry, false);
    }
}

void batch_pacing::remove_busy(busy_agents::iterator one) {
    auto& whose = *one->second.entry.whose;
    entries_of(one->second).erase(one->second.entry);
    busy_.erase(one);
    if (whose.due.empty() && whose.lines.back().in_turn) {
        leave(busy_owners_, whose.lines.back());
    }
    set_waking(whose);
}

batch_pacing::busy_agents::iterator batch_pacing::busy_of(due_entry const& entry) {
    return busy_.find({entry.agent, entry.whose->id});
}

// Where its agent waits already, both go when the first of them is due.
void batch_pacing::put_busy(operations& from, operations::iterator it, time_point due,
                            time_point now) {
    auto const* const suspected = suspicion_of(it->agent, now);
    if (suspected != nullptr) {
        due = std::max(due, suspected->not_before);
    }
    auto const key = std::pair{it->agent, it->owner};
    auto known = busy_.find(key);
    if (known == busy_.end()) {
        auto& whose = owners_.at(it->owner);
        due_entries made{{due, ++busy_entries_, it->agent, &whose}}; // first: it may throw
        known = busy_.emplace(key, busy_agent{{}, *made.begin(), suspected != nullptr}).first;
        entries_of(known->second).insert(made.extract(made.begin()));
        set_waking(whose);
    } else if (due < known->second.entry.due) {
        auto entry = known->second.entry;
        entry.due = due;
        move_entry(known->second, entry, known->second.is_suspect);
    }
    put(known->second.waiting, place::busy, from, it, false);
    ++busy_count_;
}

// What is left of the agent's goes behind its owner's other agents.
void batch_pacing::take_busy_of(busy_agents::iterator one, std::size_t count, time_point now,
                                operations& batch) {
    auto& waiting = one->second.waiting;
    if (count < waiting.size()) {
        auto entry = one->second.entry;
        entry.due = now;
        entry.number = ++busy_entries_;
        move_entry(one->second, entry, one->second.is_suspect);
    }
    for (; count > 0 && !waiting.empty(); --count) {
        depart(waiting, waiting.begin(), batch);
        --busy_count_;
    }
    if (waiting.empty()) {
        remove_busy(one);
    }
}

void batch_pacing::next_busy(std::size_t limit, time_point now, operations& batch) {
    auto& owners = busy_owners_.waiting;
    auto const is_due = [now](due_entries const& entries) {
        return !entries.empty() && entries.begin()->due <= now;
    };
    while (is_due(suspects_due_) && suspicion_of(suspects_due_.begin()->agent, now) == nullptr) {
        auto const none = busy_of(*suspects_due_.begin()); // the suspicion has run out
        move_entry(none->second, none->second.entry, false);
    }
    while (!waking_.empty() && waking_.begin()->first <= now) {
        auto& whose = *waking_.begin()->second;
        enter(busy_owners_, whose.lines.back());
        set_waking(whose);
    }
    bool const held_up = is_due(suspects_due_);
    if (!held_up || !suspect_next_) {
        // With one owner alone its first agent may fill the batch.
        auto const each = std::max<std::size_t>(1, limit / std::max<std::size_t>(1, owners.size()));
        while (!owners.empty() && batch.size() < limit) {
            auto& one = *owners.front();
            auto& whose = *one.whose;
            if (!is_due(whose.due)) {
                leave(busy_owners_, one);
                set_waking(whose);
                continue;
            }
            owners.splice(owners.end(), owners, one.turn);
            take_busy_of(busy_of(*whose.due.begin()), std::min(each, limit - batch.size()), now,
                         batch);
        }
    }
    if (held_up && batch.empty()) {
        take_busy_of(busy_of(*suspects_due_.begin()), limit, now, batch);
        suspect_next_ = false;
    } else {
        suspect_next_ = true;
    }
}

batch_pacing::time_point batch_pacing::next_busy_due() const {
    if (!busy_owners_.waiting.empty()) {
        return time_point{}; // there was more than the newest batch could take
    }
    auto first = waking_.empty() ? time_point::max() : waking_.begin()->first;
    if (!suspects_due_.empty()) {
        first = std::min(first, suspects_due_.begin()->due);
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
    for (auto it = suspects_.begin(); it != suspects_.end();) {
        auto const here = it++;
        if (here->second.ends <= now) {
            clear_suspect(here->first);
            suspects_.erase(here);
        }
    }
    for (auto const& op : batch) {
        news = suspects_.insert_or_assign(op.agent, suspicion{now + suspicion_time, now + pause})
                   .second ||
               news;
        // What came while the call was under way waits with it, whoever asked.
        // What has come first stays first, so that its owners take turns.
        for (auto it = busy_.lower_bound({op.agent, std::numeric_limits<owner_id>::min()});
             it != busy_.end() && it->first.first == op.agent; ++it) {
            auto entry = it->second.entry;
            entry.due = now + pause;
            move_entry(it->second, entry, true);
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
