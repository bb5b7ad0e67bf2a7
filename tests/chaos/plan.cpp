#include "tests/chaos/plan.hpp"

#include <algorithm>
#include <array>
#include <deque>
#include <random>

namespace presenced::tests {

namespace {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

// What a fault needs for itself while it lasts. `database`: nobody may ask it anything meanwhile.
enum class place : std::uint8_t { node, process, door, wire, database, sql, table, token };

struct card {
    char const* kind;
    place where;
    milliseconds shortest;
    milliseconds longest;
};

// A tenth of what they would be at the default timings. Around stale_after (4.5 s) and
// peer_timeout (3 s), on both sides of them, is where promises break.
constexpr std::array deck{
    card{"node_killed", place::node, 200ms, 6'500ms},
    card{"node_frozen", place::node, 300ms, 7'000ms},
    card{"node_drained", place::node, 3'200ms, 4'500ms},
    card{"node_clock", place::node, 1'000ms, 4'000ms},
    card{"clients_killed", place::process, 100ms, 2'000ms},
    card{"exodus", place::process, 100ms, 2'000ms},
    card{"clients_frozen", place::process, 500ms, 7'000ms},
    card{"door_delay", place::door, 500ms, 4'000ms},
    card{"door_cut", place::door, 10ms, 20ms},
    card{"door_refused", place::door, 300ms, 3'000ms},
    card{"door_hole", place::door, 300ms, 7'000ms},
    card{"door_hole_up", place::door, 300ms, 7'000ms},
    card{"door_hole_down", place::door, 300ms, 7'000ms},
    card{"wire_delay", place::wire, 500ms, 4'000ms},
    card{"wire_cut", place::wire, 10ms, 20ms},
    card{"wire_cut", place::wire, 10ms, 20ms},
    card{"wire_refused", place::wire, 300ms, 7'000ms},
    card{"wire_hole", place::wire, 300ms, 7'000ms},
    card{"wire_hole_up", place::wire, 300ms, 6'000ms},
    card{"wire_hole_down", place::wire, 300ms, 6'000ms},
    card{"hang_up", place::wire, 10ms, 20ms},
    card{"database_restarted", place::database, 50ms, 100ms},
    card{"database_stopped", place::database, 4'600ms, 7'500ms},
    card{"database_crashed", place::database, 100ms, 3'000ms},
    card{"backend_killed", place::database, 500ms, 600ms},
    card{"database_frozen", place::database, 500ms, 6'000ms},
    card{"table_locked", place::table, 500ms, 6'000ms},
    card{"rows_deleted", place::sql, 10ms, 20ms},
    card{"rows_inserted", place::sql, 10ms, 20ms},
    card{"agents_locked", place::sql, 500ms, 6'000ms},
    card{"rows_locked", place::sql, 500ms, 6'000ms},
    card{"token_revoked", place::token, 35'000ms, 36'000ms},
};

constexpr auto first = 1'500ms; // everybody has come by then
constexpr auto lanes = 2;       // faults at a time, those of one moment not counted

struct planned {
    place where;
    int target;
    milliseconds from;
    milliseconds to;
};

bool is_alone(place p) {
    return p == place::database || p == place::table;
}

bool asks_database(place p) {
    return p == place::sql || p == place::table || p == place::token;
}

// The database takes a moment to stop and to start; hands off meanwhile.
milliseconds margin(place p) {
    return p == place::database ? 1'500ms : 100ms;
}

bool collide(planned const& a, planned const& b) {
    auto const gap = std::max(margin(a.where), margin(b.where));
    if (a.from >= b.to + gap || b.from >= a.to + gap) {
        return false;
    }
    auto const database = a.where == place::database || b.where == place::database;
    if (a.where == place::token || b.where == place::token) {
        // It is long, and asks the database at its two ends only.
        auto const& t = a.where == place::token ? a : b;
        auto const& other = a.where == place::token ? b : a;
        auto const meets = [&](milliseconds at) {
            return at > other.from - gap && at < other.to + gap;
        };
        return (is_alone(other.where) && (meets(t.from) || meets(t.to))) ||
               (a.where == b.where && a.target == b.target);
    }
    if (is_alone(a.where) && is_alone(b.where)) {
        return true;
    }
    if ((is_alone(a.where) && asks_database(b.where)) ||
        (is_alone(b.where) && asks_database(a.where))) {
        return true;
    }
    if (database && (a.where == place::wire || b.where == place::wire)) {
        return true; // hang_up asks it; and one outage at a time can be told from another
    }
    return a.where == b.where && a.where != place::sql && a.target == b.target;
}

int targets(place where, stage_size const& size) {
    switch (where) {
    case place::node:
    case place::door:
    case place::wire:
        return size.nodes;
    case place::process:
        return size.processes;
    case place::token:
        return size.tokens - 1; // the first one is never revoked
    case place::database:
    case place::sql:
    case place::table:
        break;
    }
    return 1;
}

} // namespace

std::vector<fault> make_plan(unsigned seed, milliseconds length, stage_size const& size) {
    std::mt19937 random{seed};
    // Not std::uniform_int_distribution, which is another one in every library.
    auto const pick = [&](std::int64_t n) {
        return static_cast<std::int64_t>(random()) % n;
    };
    std::vector<fault> faults;
    std::vector<planned> taken;
    std::deque<card> cards;
    auto const shuffle_in = [&] {
        std::vector<card> fresh{deck.begin(), deck.end()};
        for (auto i = fresh.size(); i > 1; --i) {
            std::swap(fresh[i - 1],
                      fresh[static_cast<std::size_t>(pick(static_cast<std::int64_t>(i)))]);
        }
        cards.insert(cards.end(), fresh.begin(), fresh.end());
    };
    std::array<milliseconds, lanes> free_at{};
    free_at.fill(first);
    for (;;) {
        auto& lane = *std::min_element(free_at.begin(), free_at.end());
        if (lane >= length) {
            break;
        }
        if (cards.size() < 8) {
            shuffle_in();
        }
        // The first card that goes with what is planned already; the others keep their turn.
        bool dealt = false;
        for (auto c = cards.begin(); c != cards.end() && c - cards.begin() < 8; ++c) {
            auto const target = static_cast<int>(pick(targets(c->where, size)));
            auto lasts = c->shortest + milliseconds{pick((c->longest - c->shortest).count() + 1)};
            if (c->where == place::token) {
                lasts = std::min(lasts, length - lane);
            }
            planned const p{c->where, target, lane, lane + lasts};
            if (p.to > length || std::any_of(taken.begin(), taken.end(),
                                             [&](auto const& t) { return collide(p, t); })) {
                continue;
            }
            faults.push_back({lane, c->kind, target, lasts, static_cast<unsigned>(random())});
            taken.push_back(p);
            auto const busy = c->where == place::token ? 0ms : lasts;
            lane += busy + 200ms + milliseconds{pick(1'300)};
            cards.erase(c);
            dealt = true;
            break;
        }
        if (!dealt) {
            lane += 250ms;
        }
        std::erase_if(taken, [&](auto const& t) {
            return t.to + 5s < *std::min_element(free_at.begin(), free_at.end());
        });
    }
    std::stable_sort(faults.begin(), faults.end(),
                     [](auto const& a, auto const& b) { return a.at < b.at; });
    return faults;
}

} // namespace presenced::tests
