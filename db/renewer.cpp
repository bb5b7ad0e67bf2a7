#include "db/renewer.hpp"

#include "db/arrays.hpp"
#include "db/schema.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>

namespace presenced::db {

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds lock_timeout{100};
constexpr milliseconds longest_pause{30'000};

} // namespace

renewer::renewer(session_context const& context, postgres_options const& options,
                 std::size_t board_number, stop_signal& stop)
    : options_{options}
    , board_{context.board}
    , watcher_{context.watcher}
    , stop_{stop}
    , link_{context,
            {"renewal",
             board_number,
             true,
             false,
             lock_timeout,
             false,
             {&statements::renew, &statements::facts, &statements::forget_node}}}
    , thread_{[this] {
        run();
    }} {}

void renewer::push(renew_request request) {
    bool news = false;
    {
        std::lock_guard const lock{mutex_};
        if (auto const held = held_.find(request.token); held != held_.end()) {
            held->second.key = request.key; // with its next try
            return;
        }
        waiting_.insert_or_assign(
            request.token, renewal{request.agent, request.box, request.key, steady_clock::now()});
        // Those in between change nothing of when the batch goes out.
        news = waiting_.size() == 1 || waiting_.size() == batch_limit;
    }
    if (news) {
        changed_.notify_one();
    }
}

void renewer::forget(lease_token const& token) {
    std::lock_guard const lock{mutex_};
    waiting_.erase(token);
    held_.erase(token);
    if (auto const flying = in_flight_.find(token); flying != in_flight_.end()) {
        flying->second = true;
    }
}

void renewer::tell_outages(mailbox& box) {
    std::lock_guard const lock{mutex_};
    outage_boxes_.push_back(&box);
}

void renewer::stop_ticking() {
    std::lock_guard const lock{mutex_};
    ticking_ = false;
}

void renewer::wake() {
    std::lock_guard const lock{mutex_};
    stopping_ = true;
    changed_.notify_one();
}

std::size_t renewer::depth() const {
    std::lock_guard const lock{mutex_};
    return waiting_.size() + held_.size() + in_flight_.size();
}

milliseconds renewer::oldest() const {
    std::lock_guard const lock{mutex_};
    auto first = oldest_in_flight_;
    for (auto const& [token, r] : waiting_) {
        first = std::min(first, r.since);
    }
    auto const now = steady_clock::now();
    return first > now ? milliseconds{0} : duration_cast<milliseconds>(now - first);
}

// Returns false when stopped.
bool renewer::wait_for_work(time_point next_tick, time_point not_before) {
    std::unique_lock lock{mutex_};
    for (;;) {
        if (stopping_) {
            return false;
        }
        auto const now = steady_clock::now();
        auto const until = waiting_.empty() ? next_tick : std::min(next_tick, not_before);
        if (until <= now || waiting_.size() >= batch_limit) {
            return true;
        }
        changed_.wait_until(lock, until);
    }
}

renewer::renewals renewer::take() {
    std::lock_guard const lock{mutex_};
    renewals batch;
    auto it = waiting_.lower_bound(cursor_);
    while (batch.size() < batch_limit && !waiting_.empty()) {
        if (it == waiting_.end()) {
            if (!batch.empty()) {
                break; // the next batch begins at the front, or this one would not be sorted
            }
            it = waiting_.begin();
        }
        auto const here = it++;
        in_flight_.emplace(here->first, false);
        oldest_in_flight_ = std::min(oldest_in_flight_, here->second.since);
        batch.insert(batch.end(), waiting_.extract(here));
    }
    cursor_ = it == waiting_.end() ? lease_token{} : it->first;
    return batch;
}

void renewer::run() {
    unsigned generation = 0;
    auto next_tick = steady_clock::now();
    auto next_look = next_tick;
    auto not_before = next_tick;
    while (link_.connect(stop_)) {
        if (generation != 0 && link_.generation() != generation) {
            std::vector<mailbox*> boxes;
            {
                std::lock_guard const lock{mutex_};
                boxes = outage_boxes_;
            }
            for (auto* box : boxes) {
                box->database_back();
            }
        }
        if (link_.generation() != generation) {
            next_look = steady_clock::now();
        }
        generation = link_.generation();
        if (!wait_for_work(next_tick, not_before)) {
            break;
        }
        if (!link_.is_usable()) {
            continue;
        }
        if (steady_clock::now() >= next_look) {
            auto const known = look();
            next_look =
                steady_clock::now() + (known ? options_.timings.sweep : options_.timings.tick());
            continue;
        }
        bool tick = steady_clock::now() >= next_tick;
        if (tick) {
            next_tick = steady_clock::now() + options_.timings.tick();
        }
        auto batch = take();
        // They are in no hurry, and each alone would be a transaction of its own.
        not_before = steady_clock::now() + options_.timings.gathering();
        if (!batch.empty() || tick) {
            send(std::move(batch), false, tick && may_tick());
        }
        if (tick) {
            retry_held(next_tick);
        }
    }
    say_goodbye();
}

// The schema may be migrated under a running node, and stale_after may change while it is cut off:
// so it looks before it renews anything on a new connection, and again and again. Returns false
// when it could not: renewals wait for no one who holds the tables it reads.
bool renewer::look() {
    auto const mine = options_.timings.stale_after;
    std::vector<applied_migration> applied;
    std::optional<milliseconds> recorded;
    try {
        for (auto const& line : link_.call(statements::facts, {})) {
            applied.push_back(
                {std::stoi(line.at(0).value()), line.at(1).value_or(""), line.at(2).value_or("")});
            if (line.at(3)) {
                recorded = milliseconds{std::stoll(*line.at(3))};
            }
        }
    } catch (call_failure const& e) {
        spdlog::debug("look at the schema failed sqlstate={} reason=\"{}\"", e.sqlstate(),
                      e.what());
        return false;
    }
    auto why = misfit(applied, options_.version);
    if (!why && !recorded) {
        why = "presence_clock is empty, and has one row where presenced made it";
    } else if (!why && *recorded != mine) {
        why = "stale_after is " + std::to_string(recorded->count()) +
              "ms in the database, and this node runs with " + std::to_string(mine.count()) +
              "ms: restart it";
    }
    board_.looked(why.value_or(""), recorded.value_or(mine) != mine);
    return true;
}

bool renewer::may_tick() const {
    std::lock_guard const lock{mutex_};
    return ticking_;
}

// Those whose rows are held, and those whose turn has not come for long: there was evidence of
// their clients when they were asked for, and slow calls for others are not to cost them their
// rows.
std::string renewer::vouches() const {
    std::lock_guard const lock{mutex_};
    array_literal tokens;
    auto const long_ago = steady_clock::now() - options_.timings.sweep;
    for (auto const& [token, r] : waiting_) {
        if (r.since < long_ago) {
            tokens.add(token.view());
        }
    }
    for (auto const& [token, r] : held_) {
        tokens.add(token.view());
    }
    return tokens.take();
}

bool renewer::send(renewals batch, bool skip_locked, bool tick) {
    if (!link_.is_usable()) {
        give_back(std::move(batch));
        return false;
    }
    if (!batch.empty()) {
        watcher_.batch("renewal", batch.size());
    }
    try {
        call(batch, skip_locked, tick);
        return true;
    } catch (call_failure const& e) {
        if (e.is_overrun() && !batch.empty()) {
            put_off(std::move(batch), e);
            if (tick) {
                send({}, true, true);
            }
            return false;
        }
        if (e.kind() == fault::element && !batch.empty()) {
            if (e.is_doubtful() && may_tick() && !send({}, true, true)) {
                give_back(std::move(batch)); // everybody's fault, then
                return false;
            }
            if (batch.size() > 1) {
                return send_parts(std::move(batch), skip_locked, tick);
            }
            put_off(std::move(batch), e);
            return !tick || send({}, true, true);
        }
        if (!e.is_lock_timeout()) {
            give_back(std::move(batch));
            return false;
        }
        if (!skip_locked) {
            return send(std::move(batch), true, tick); // somebody holds one of the rows
        }
        if (tick && !batch.empty()) {
            // Not the rows, then: the tables of the tick, or that of the rows. Renewals come first.
            return send(std::move(batch), true, false);
        }
        if (!batch.empty() && may_tick() && send({}, true, true)) {
            // The table is free, or there would have been no tick: what a trigger of somebody
            // else's does with one of the rows is what waits.
            put_off(std::move(batch), e);
            return false;
        }
    }
    // Somebody holds the table: no renewal, no tick, and so lease time stands still.
    give_back(std::move(batch));
    static_cast<void>(stop_.wait_for(lock_timeout));
    return false;
}

bool renewer::send_parts(renewals batch, bool skip_locked, bool tick) {
    auto const size = part_size(batch.size());
    bool prompt = true;
    while (prompt && !batch.empty()) {
        renewals part;
        while (!batch.empty() && part.size() < size) {
            part.insert(part.end(), batch.extract(batch.begin()));
        }
        prompt = send(std::move(part), skip_locked, tick && batch.empty());
    }
    if (tick && !batch.empty()) {
        send({}, true, true); // it would have gone with the last part
    }
    give_back(std::move(batch));
    return prompt;
}

void renewer::call(renewals& batch, bool skip_locked, bool tick) {
    array_literal agents;
    array_literal tokens;
    for (auto const& [token, r] : batch) {
        agents.add(r.agent);
        tokens.add(token.view());
    }
    std::optional<std::string> judge_for;
    if (tick) {
        judge_for = std::to_string(options_.timings.judge_window().count());
    }
    auto const reply =
        link_.call(statements::renew,
                   {agents.take(), tokens.take(), skip_locked ? "true" : "false", options_.node,
                    options_.boot_id, options_.version, judge_for, tick ? vouches() : "{}"},
                   !batch.empty());
    board_.renewed();
    if (auto const& age = reply.at(0).at(3)) {
        board_.ticked(milliseconds{std::stoll(*age)});
    }
    link_.note_database_time(std::stoll(reply.at(0).at(0).value()));
    auto missing = parse_array(reply.at(0).at(1).value_or("{}"));
    auto held = parse_array(reply.at(0).at(2).value_or("{}"));
    std::sort(missing.begin(), missing.end());
    std::sort(held.begin(), held.end());
    watcher_.renewals("renewed", batch.size() - missing.size() - held.size());
    watcher_.renewals("missing", missing.size());
    watcher_.renewals("held", held.size());

    renewals passed_over;
    lease_answers answers;
    {
        std::lock_guard const lock{mutex_};
        for (auto it = batch.begin(); it != batch.end();) {
            auto const here = it++;
            auto const& token = here->first;
            if (std::binary_search(held.begin(), held.end(), token.view())) {
                passed_over.insert(passed_over.end(), batch.extract(here));
                continue;
            }
            auto const gone = std::binary_search(missing.begin(), missing.end(), token.view());
            answers.add(*here->second.box,
                        {here->second.key, gone ? lease_outcome::missing : lease_outcome::renewed});
            in_flight_.erase(token);
            held_.erase(token);
        }
        if (passed_over.empty()) {
            oldest_in_flight_ = time_point::max();
        }
    }
    batch.clear();
    hold(std::move(passed_over));
    answers.deliver();
}

// Their rows stay, nobody may reap them for want of this renewal, and nobody waits for them. What
// fails in company is tried again in smaller company, what fails alone after a pause.
void renewer::put_off(renewals batch, call_failure const& e) {
    auto const now = steady_clock::now();
    if (batch.size() > 1) {
        auto const company = part_size(batch.size());
        for (auto& [token, r] : batch) {
            r.company = company;
        }
        spdlog::debug("renewals put off count={} sqlstate={}", batch.size(), e.sqlstate());
    } else {
        auto& r = batch.begin()->second;
        auto const pause =
            e.is_overrun()
                ? longest_pause
                : std::min(longest_pause, milliseconds{1'000} * (1 << std::min(r.failures, 5U)));
        if (auto const more = refusals_.admit()) {
            spdlog::warn("renewal refused agent={} sqlstate={} retry_ms={}{}", r.agent,
                         e.sqlstate(), pause.count(), *more);
        }
        ++r.failures;
        r.company = 1;
        r.not_before = now + pause;
    }
    hold(std::move(batch));
}

void renewer::give_back(renewals batch) {
    std::lock_guard const lock{mutex_};
    while (!batch.empty()) {
        auto node = batch.extract(batch.begin());
        auto const flying = in_flight_.extract(node.key());
        if (!flying.mapped() && !held_.contains(node.key())) {
            waiting_.insert(std::move(node)); // unless it was asked for anew
        }
    }
    oldest_in_flight_ = time_point::max();
}

void renewer::hold(renewals batch) {
    std::lock_guard const lock{mutex_};
    while (!batch.empty()) {
        auto node = batch.extract(batch.begin());
        auto const flying = in_flight_.extract(node.key());
        if (!flying.mapped()) {
            held_.insert_or_assign(node.key(), node.mapped());
        }
    }
    oldest_in_flight_ = time_point::max();
}

// After every tick, without waiting for any of them. They stay in held_ while they are asked, and
// so are vouched for, until the answer is there. The first call that fails slowly ends the round,
// and so does the next tick: lease time is not to stand still for the sake of a few rows.
void renewer::retry_held(time_point next_tick) {
    std::map<std::size_t, renewals, std::greater<>> due; // by company: the few suspects come last
    {
        std::lock_guard const lock{mutex_};
        auto const now = steady_clock::now();
        for (auto const& [token, r] : held_) {
            if (r.not_before <= now) {
                auto& companions = due[r.company];
                companions.emplace_hint(companions.end(), token, r);
            }
        }
    }
    for (auto& [company, companions] : due) {
        while (!companions.empty()) {
            renewals batch;
            {
                std::lock_guard const lock{mutex_};
                while (!companions.empty() && batch.size() < company) {
                    auto one = companions.extract(companions.begin());
                    if (held_.contains(one.key())) {
                        in_flight_.emplace(one.key(), false);
                        batch.insert(batch.end(), std::move(one));
                    }
                }
            }
            if (!batch.empty() && !send(std::move(batch), true, false)) {
                return;
            }
            if (steady_clock::now() >= next_tick) {
                return; // with one call at least in each round, they all get their turn
            }
        }
    }
}

// A node that leaves in good order is not waited for by those who count nodes.
void renewer::say_goodbye() {
    if (!link_.is_usable()) {
        return;
    }
    try {
        static_cast<void>(link_.call(statements::forget_node, {options_.node, options_.boot_id}));
    } catch (call_failure const& e) {
        spdlog::warn("node row left behind reason=\"{}\"", e.what());
    }
}

} // namespace presenced::db
