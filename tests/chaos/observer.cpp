#include "tests/chaos/observer.hpp"

#include <optional>
#include <stdexcept>

namespace presenced::tests {

namespace {

// One statement, and so one snapshot. Times are seconds since 1970 by the database's clock. A flip
// may commit after one with a higher id, so the last few hundred are looked at each time.
auto const question = R"(
    SELECT 'row', token, agent_id::text, coalesce(session_id, ''), node,
           extract(epoch FROM last_seen_at)::text
    FROM agent_subscriptions
    UNION ALL SELECT 'flag', id::text, '', '', '', '' FROM agents WHERE routing_active
    UNION ALL SELECT 'flip', id::text, agent_id::text, active::text, reason,
                     extract(epoch FROM at)::text
    FROM routing_transitions WHERE id > (SELECT max(id) - 300 FROM routing_transitions)
    UNION ALL SELECT 'clock', extract(epoch FROM ticked_at)::text,
                     extract(epoch FROM judge_until)::text, extract(epoch FROM amnesty_until)::text,
                     (SELECT extract(epoch FROM max(n.swept_at))::text FROM nodes n), ''
    FROM presence_clock
    UNION ALL SELECT 'now', extract(epoch FROM clock_timestamp())::text, '', '', '', '')";

} // namespace

observer::observer(history& log, std::string conninfo, milliseconds every)
    : log_{log}
    , conninfo_{std::move(conninfo)}
    , every_{every}
    , thread_{[this] {
        run();
    }} {}

observer::~observer() {
    stop_ = true;
    thread_.join();
}

void observer::run() {
    std::optional<sql_session> sql;
    while (!stop_) {
        auto const next = steady::now() + every_;
        try {
            if (!sql) {
                sql.emplace(conninfo_);
                sql->query("LISTEN presenced_routing");
                log_.write("listening");
            }
            look(*sql);
            for (auto const& payload : sql->notifications()) {
                log_.write("notify", {{"of", json::parse(payload)}});
            }
        } catch (std::runtime_error const&) { // the database is away
            if (sql) {
                log_.write("deaf");
            }
            sql.reset();
        }
        std::this_thread::sleep_until(next);
    }
}

void observer::look(sql_session& sql) {
    auto const began = log_.now();
    auto const table = sql.query(question);
    auto const number = ++snapshots_;
    json snap = {{"t1", log_.now()}};
    auto const note = [&snap](char const* key, json value) {
        snap[key].push_back(std::move(value));
    };
    for (auto const& r : table) {
        if (r[0] == "row") {
            auto const [it, is_new] = leases_.try_emplace(r[1], lease{r[5], number});
            if (is_new) {
                note("add", {r[1], std::stol(r[2]), r[3], r[4], r[5]});
            } else if (it->second.last_seen != r[5]) {
                it->second.last_seen = r[5];
                note("seen", {r[1], r[5]});
            }
            it->second.snapshot = number;
        } else if (r[0] == "flag") {
            if (flags_.try_emplace(r[1], number).second) {
                note("on", std::stol(r[1]));
            }
            flags_[r[1]] = number;
        } else if (r[0] == "flip") {
            if (auto const id = std::stol(r[1]); flips_.try_emplace(id, number).second) {
                note("flips", {id, std::stol(r[2]), r[3] == "true", r[4], r[5]});
            }
        } else if (r[0] == "clock") {
            if (auto const now = r[1] + r[2] + r[3] + r[4]; now != clock_) {
                clock_ = now;
                snap["clock"] = {r[1], r[2], r[3], r[4]};
            }
        } else {
            snap["db"] = r[1];
        }
    }
    std::erase_if(leases_, [&](auto const& l) {
        if (l.second.snapshot != number) {
            note("gone", l.first);
            return true;
        }
        return false;
    });
    std::erase_if(flags_, [&](auto const& f) {
        if (f.second != number) {
            note("off", std::stol(f.first));
            return true;
        }
        return false;
    });
    if (!flips_.empty()) {
        forget_old_flips(flips_.rbegin()->first);
    }
    log_.write("snap", began, std::move(snap));
}

void observer::forget_old_flips(long newest) {
    flips_.erase(flips_.begin(), flips_.lower_bound(newest - 1'000));
}

} // namespace presenced::tests
