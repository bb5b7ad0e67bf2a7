#include "db/store/renewer.hpp"

#include "base/threads.hpp"
#include "db/session/conninfo.hpp"
#include "db/session/judgement.hpp"
#include "db/session/thread.hpp"
#include "db/store/answer_row.hpp"
#include "db/store/arrays.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <string_view>

namespace presenced::db {

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds lock_timeout{100};

struct by_token {
    bool operator()(renewal_pacing::element const& a, std::string_view b) const {
        return a.token.view() < b;
    }
    bool operator()(std::string_view a, renewal_pacing::element const& b) const {
        return a < b.token.view();
    }
};

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
             {&statements::renew, &statements::forget_node}}}
    , pacing_{{options.timings.tick(), options.timings.gathering(), options.timings.sweep},
              steady_clock::now()}
    , next_judgement_{steady_clock::now()}
    , thread_{base::start_thread("the database", [this] {
        keep_going(
            "renewal", stop_, [this] { return step(); },
            [this] {
                {
                    std::lock_guard const lock{mutex_};
                    pacing_.abort();
                }
                link_.replace();
            });
        say_goodbye();
    })} {}

void renewer::push(renew_request request) {
    bool news = false;
    {
        std::lock_guard const lock{mutex_};
        news = pacing_.add(request, steady_clock::now());
    }
    if (news) {
        changed_.notify_one();
    }
}

void renewer::forget(lease_token const& token) {
    std::lock_guard const lock{mutex_};
    pacing_.forget(token);
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
    {
        std::lock_guard const lock{mutex_};
        stopping_ = true;
    }
    changed_.notify_one();
}

std::size_t renewer::depth() const {
    std::lock_guard const lock{mutex_};
    return pacing_.depth();
}

milliseconds renewer::oldest() const {
    std::lock_guard const lock{mutex_};
    auto const now = steady_clock::now();
    return duration_cast<milliseconds>(now - pacing_.oldest(now));
}

// Returns false when stopped.
bool renewer::wait_for_work() {
    std::unique_lock lock{mutex_};
    while (!stopping_) {
        if (pacing_.is_due(steady_clock::now())) {
            return true;
        }
        auto const until = pacing_.due_at();
        changed_.wait_until(lock, until);
    }
    return false;
}

bool renewer::step() {
    answers_.deliver();
    if (!link_.connect(stop_)) {
        return false;
    }
    note_generation();
    if (!wait_for_work()) {
        return false;
    }
    if (!link_.is_usable()) {
        return true;
    }
    auto const now = steady_clock::now();
    if (now >= next_judgement_ ||
        (board_.is_judgement_wanted() && now >= judged_ + options_.timings.tick())) {
        next_judgement_ = now + options_.timings.tick();
        if (judge()) {
            next_judgement_ = steady_clock::now() + options_.timings.sweep;
        }
        judged_ = steady_clock::now();
        return true;
    }
    bool tick = false;
    batch renewals;
    {
        std::lock_guard const lock{mutex_};
        auto const taken_at = steady_clock::now();
        tick = pacing_.take_tick(taken_at);
        renewals = pacing_.take(taken_at);
    }
    if (!renewals.empty() || tick) {
        send(std::move(renewals), false, tick && may_tick());
    }
    if (tick) {
        retry_held();
    }
    return true;
}

// The database was away if there is another session than before.
void renewer::note_generation() {
    if (link_.generation() == generation_) {
        return;
    }
    if (generation_ != 0) {
        std::vector<mailbox*> boxes;
        {
            std::lock_guard const lock{mutex_};
            boxes = outage_boxes_;
        }
        for (auto* box : boxes) {
            box->database_back();
        }
    }
    generation_ = link_.generation();
    // Where the last session was lost in the middle of its judgement, this one renews first: a
    // judgement takes a while, and sessions may be lost faster than that, again and again.
    if (!lost_in_judgement_) {
        next_judgement_ = steady_clock::now();
    }
}

// The schema may be migrated under a running node, rights may be taken away, and stale_after may
// change while it is cut off: so it judges before it renews anything on a new connection, and again
// and again. Returns false when it could not: renewals wait for no one who holds the tables that a
// judgement reads.
bool renewer::judge() {
    auto const mine = options_.timings.stale_after;
    judgement verdict;
    try {
        verdict = link_.judge(options_.version);
    } catch (call_failure const& e) {
        lost_in_judgement_ = e.kind() == fault::connection;
        spdlog::debug("judgement failed sqlstate={} reason=\"{}\"", e.sqlstate(), e.what());
        board_.not_judged();
        return false;
    }
    lost_in_judgement_ = false;
    for (auto const& sequence : verdict.mended) {
        spdlog::warn("database mended sequence={}: it was behind the rows of its table", sequence);
    }
    for (auto const& p : verdict.problems) {
        if (p.how_bad == problem::weight::warning && warned_.insert(p.what).second) {
            spdlog::warn("database warning reason=\"{}\" cure=\"{}\"", in_one_line(p.what),
                         in_one_line(p.cure));
        }
    }
    auto why = verdict.reason();
    auto const recorded = verdict.stale_after.value_or(mine);
    if (why.empty() && recorded != mine) {
        why = "stale_after is " + std::to_string(recorded.count()) +
              "ms in the database, and this node runs with " + std::to_string(mine.count()) +
              "ms: restart it";
    }
    board_.judged(in_one_line(why), recorded != mine);
    return true;
}

bool renewer::may_tick() const {
    std::lock_guard const lock{mutex_};
    return ticking_;
}

std::string renewer::vouches() const {
    array_literal tokens;
    std::lock_guard const lock{mutex_};
    for (auto const token : pacing_.vouched(steady_clock::now())) {
        tokens.add(token);
    }
    return tokens.take();
}

bool renewer::send(batch renewals, bool skip_locked, bool tick) {
    if (!link_.is_usable()) {
        give_back(renewals);
        return false;
    }
    if (!renewals.empty()) {
        watcher_.batch("renewal", renewals.size());
    }
    try {
        call(renewals, skip_locked, tick);
        return true;
    } catch (call_failure const& e) {
        switch (judge_renewal(e, renewals.size(), skip_locked, tick, may_tick())) {
        case renewal_verdict::ask_tick:
            if (!send_tick()) {
                give_back(renewals);
                return false;
            }
            if (renewals.size() > 1) {
                return send_parts(renewals, skip_locked, tick);
            }
            [[fallthrough]];
        case renewal_verdict::put_off:
            put_off(renewals, e);
            return (!tick || send_tick()) && !e.is_overrun();
        case renewal_verdict::split:
            return send_parts(renewals, skip_locked, tick);
        case renewal_verdict::give_back:
            give_back(renewals);
            return false;
        case renewal_verdict::pass_over:
            return send(std::move(renewals), true, tick);
        case renewal_verdict::without_tick:
            return send(std::move(renewals), true, false);
        case renewal_verdict::ask_tick_slowly:
            if (send_tick()) {
                // The table is free, or there would have been no tick: what a trigger of somebody
                // else's does with one of the rows is what waits.
                put_off(renewals, e);
                return false;
            }
            break;
        case renewal_verdict::rest:
            break;
        }
    } catch (unreadable_answer const& e) {
        if (auto const more = puzzles_.admit()) {
            spdlog::error("renewal answer not understood renewals={} why=\"{}\"{}", renewals.size(),
                          e.what(), *more);
        }
        link_.replace(); // its plans may be of another schema
    }
    // Somebody holds the table, or nobody knows what was renewed: no tick, and so lease time stands
    // still.
    give_back(renewals);
    static_cast<void>(stop_.wait_for(lock_timeout));
    return false;
}

bool renewer::send_parts(batch const& renewals, bool skip_locked, bool tick) {
    auto const size = part_size(renewals.size());
    auto at = renewals.begin();
    bool prompt = true;
    while (prompt && at != renewals.end()) {
        auto const n =
            std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(size), renewals.end() - at);
        batch part{at, at + n};
        at += n;
        prompt = send(std::move(part), skip_locked, tick && at == renewals.end());
    }
    if (tick && at != renewals.end()) {
        send_tick(); // it would have gone with the last part
    }
    give_back({at, renewals.end()});
    return prompt;
}

void renewer::call(batch const& renewals, bool skip_locked, bool tick) {
    array_literal agents;
    array_literal tokens;
    for (auto const& r : renewals) {
        agents.add(r.agent);
        tokens.add(r.token.view());
    }
    std::optional<std::string> judge_for;
    if (tick) {
        judge_for = std::to_string(options_.timings.judge_window().count());
    }
    auto const reply =
        link_.call(statements::renew,
                   {agents.take(), tokens.take(), skip_locked ? "true" : "false", options_.node,
                    options_.boot_id, options_.version, judge_for, tick ? vouches() : "{}"},
                   !renewals.empty());
    // All of it is read before any of it counts.
    answer_row const columns{reply, 4};
    auto const at = columns.number(0);
    auto missing = columns.elements(1);
    auto held = columns.elements(2);
    auto const age = columns.optional_number(3);
    auto const unasked = [&](std::vector<std::string>& some) {
        std::sort(some.begin(), some.end());
        return std::count_if(some.begin(), some.end(), [&](auto const& token) {
            return !std::binary_search(renewals.begin(), renewals.end(), token, by_token{});
        });
    };
    if (unasked(missing) + unasked(held) > 0) {
        throw unreadable_answer{"it speaks of leases that it was not asked about"};
    }
    board_.renewed();
    if (age) {
        board_.ticked(milliseconds{*age});
    }
    link_.note_database_time(at);
    auto const count = renewals.size();
    watcher_.renewals("renewed", count - std::min(count, missing.size() + held.size()));
    watcher_.renewals("missing", missing.size());
    watcher_.renewals("held", held.size());
    {
        std::lock_guard const lock{mutex_};
        pacing_.answered(renewals, missing, held, answers_);
    }
    answers_.deliver();
}

// Their rows stay, nobody may reap them for want of this renewal, and nobody waits for them.
void renewer::put_off(batch const& renewals, call_failure const& e) {
    milliseconds pause{0};
    {
        std::lock_guard const lock{mutex_};
        pause = pacing_.put_off(renewals, e.is_overrun(), steady_clock::now());
    }
    if (renewals.size() > 1) {
        spdlog::debug("renewals put off count={} sqlstate={}", renewals.size(), e.sqlstate());
    } else if (auto const more = refusals_.admit()) {
        spdlog::warn("renewal refused agent={} sqlstate={} retry_ms={}{}", renewals.front().agent,
                     e.sqlstate(), pause.count(), *more);
    }
}

void renewer::give_back(batch const& renewals) {
    std::lock_guard const lock{mutex_};
    pacing_.give_back(renewals);
}

// After every tick, without waiting for any of them. They are vouched for until the answer is
// there. The first call that fails slowly ends the round, and so does the next tick: lease time is
// not to stand still for the sake of a few rows.
void renewer::retry_held() {
    time_point next_tick;
    {
        std::lock_guard const lock{mutex_};
        pacing_.begin_round(steady_clock::now());
        next_tick = pacing_.next_tick();
    }
    for (;;) {
        batch some;
        {
            std::lock_guard const lock{mutex_};
            some = pacing_.take_of_round();
        }
        if (some.empty() || !send(std::move(some), true, false)) {
            return;
        }
        if (steady_clock::now() >= next_tick) {
            return; // with one call at least in each round, they all get their turn
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
    } catch (std::exception const& e) {
        spdlog::warn("node row left behind reason=\"{}\"", e.what());
    }
}

} // namespace presenced::db
