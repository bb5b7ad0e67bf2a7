#include "server/cable/leases.hpp"

#include <openssl/rand.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// How long a release that could not be handed to the store waits before the next try.
constexpr auto retry_pause = 1s;

presence::lease_token mint() {
    constexpr std::string_view alphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::array<unsigned char, 22> bytes;
    if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) {
        throw std::runtime_error{"the system has no random numbers"};
    }
    presence::lease_token token;
    std::transform(bytes.begin(), bytes.end(), token.text.begin(),
                   [&](unsigned char b) { return alphabet[b % 64]; });
    return token;
}

} // namespace

leases::leases(node& shared, wheel& timers, db::mailbox& box)
    : shared_{shared}
    , timers_{timers}
    , box_{box}
    , counts_{shared.figures} {}

template <class Event>
void leases::drive(subscription& s, Event event) {
    auto const what = event(s.lease);
    s.moves_to(s.lease.state());
    if (s.owner != nullptr) {
        s.owner->on_moved(s);
    }
    try {
        perform(s, what);
    } catch (std::exception const&) {
        bury_if_over(s); // also when its holder cannot be told, for want of memory
        throw;
    }
    bury_if_over(s);
}

void leases::perform(subscription& s, presence::action what) {
    auto* const owner = s.owner;
    switch (what) {
    case presence::action::none:
        break;
    case presence::action::renew:
        store().renew({s.agent, s.lease.token(), &box_, s.key});
        break;
    case presence::action::abandon:
    case presence::action::release:
        send_end(s);
        break;
    case presence::action::confirm:
        owner->on_confirmed(s);
        break;
    case presence::action::reject:
        s.owner = nullptr;
        owner->on_rejected(s);
        break;
    case presence::action::tell:
        shared_.figures.lease_lost();
        // Nobody is left to tell when the connection was lost already and its grace runs.
        if (owner != nullptr) {
            s.owner = nullptr;
            owner->on_lease_lost(s);
        }
        break;
    }
}

// Nobody else would ask for it again: what the store cannot take now, for want of memory, it is
// given later.
void leases::send_end(subscription& s) noexcept {
    try {
        s.unsent = true;
        if (s.lease.state() == presence::lease_state::abandoning) {
            store().abandon(s.agent, s.lease.token());
        } else {
            if (s.lease.is_renewing()) {
                store().forget_renewal(s.agent, s.lease.token());
            }
            store().release(
                {s.agent, s.lease.token(), s.lease.release_cause(), &box_, s.key, s.user});
        }
        s.unsent = false;
    } catch (std::exception const& failure) {
        try {
            timers_.schedule(retry_, wheel::clock::now() + retry_pause);
            spdlog::error("leases release failed, trying again why=\"{}\"", failure.what());
        } catch (std::exception const&) {
            return; // the chore is scheduled first, and what follows may fail
        }
    }
}

void leases::send_ends_again(wheel::clock::time_point) {
    table_.for_each([this](subscription& s) {
        if (s.unsent && (s.lease.state() == presence::lease_state::abandoning ||
                         s.lease.state() == presence::lease_state::releasing)) {
            send_end(s);
        }
    });
}

void leases::bury_if_over(subscription& s) {
    if (s.lease.is_over()) {
        hub_.detach(s);
        table_.remove(s.key);
    }
}

subscription& leases::add(lease_holder& holder, presence::agent_id agent, std::string identifier) {
    auto made = std::make_unique<subscription>(counts_, mint(), wheel::clock::now(), agent, holder,
                                               std::move(identifier));
    auto& s = *made;
    s.key = table_.insert(std::move(made));
    hub_.attach(s);
    return s;
}

void leases::ask(subscription& s, presence::owner_id user, std::optional<std::string> session_id) {
    s.user = user;
    store().acquire({s.agent, user, s.lease.token(), std::move(session_id), &box_, s.key});
    s.unsent = false;
    s.owner->on_moved(s);
}

bool leases::renew(subscription& s, wheel::clock::time_point now,
                   wheel::clock::time_point evidence) {
    auto waits = false;
    drive(s, [&](presence::lease& l) {
        auto const what = l.on_due(now, evidence, shared_.timings.heartbeat);
        waits = what == presence::action::none && !l.is_renewing();
        return what;
    });
    return !waits;
}

void leases::give_up(subscription& s, presence::release_reason why) {
    s.owner = nullptr;
    s.identifier = {};
    hub_.detach(s);
    auto const unsent = s.unsent;
    drive(s, [why, unsent](presence::lease& l) {
        auto const what = l.on_close(why);
        // The store never had it.
        return unsent ? l.on_abandoned() : what;
    });
}

void leases::linger(subscription& s, wheel::clock::time_point evidence) {
    s.owner = nullptr;
    s.identifier = {};
    hub_.detach(s);
    auto const now = wheel::clock::now();
    auto const until = now + shared_.timings.disconnect_grace;
    lingering_.push_back({until, s.key});
    if (lingering_.size() == 1) {
        timers_.schedule(grace_, until);
    }
    // The grace counts from now, so the row has to be fresh, if there is evidence for it.
    s.lease.on_database_back(now);
    (void)renew(s, now, evidence); // without evidence the lease stays as it is
}

void leases::end_graces() {
    end_graces_until(wheel::clock::time_point::max());
}

void leases::end_graces_until(wheel::clock::time_point now) {
    while (!lingering_.empty() && lingering_.front().until <= now) {
        auto const key = lingering_.front().key;
        lingering_.pop_front();
        if (!lingering_.empty()) {
            // First: what follows may fail, and the others still have their time.
            timers_.schedule(grace_, lingering_.front().until);
        }
        if (auto* s = table_.find(key)) {
            give_up(*s, presence::release_reason::disconnected);
        }
    }
}

void leases::on_answers(std::span<db::lease_answer const> answers) {
    for (auto const& answer : answers) {
        auto* const s = table_.find(answer.key);
        if (s == nullptr) {
            continue; // a renewal of a lease that has been released since
        }
        auto* const owner = s->owner;
        try {
            on_answer(*s, answer.outcome);
        } catch (std::exception const& failure) {
            // For want of memory, say. The answers behind it are others'.
            if (owner != nullptr) {
                owner->fail("answer", failure);
            } else {
                spdlog::error("leases answer failed why=\"{}\"", failure.what());
            }
        }
    }
}

void leases::on_answer(subscription& s, db::lease_outcome outcome) {
    switch (outcome) {
    case db::lease_outcome::acquired:
        drive(s, [this](presence::lease& l) { return l.on_acquired(shared_.timings.heartbeat); });
        break;
    case db::lease_outcome::refused:
        drive(s, [](presence::lease& l) { return l.on_refused(); });
        break;
    case db::lease_outcome::abandoned:
        drive(s, [](presence::lease& l) { return l.on_abandoned(); });
        break;
    case db::lease_outcome::unavailable:
        if (s.owner != nullptr) {
            s.unsent = true;
            s.owner->on_moved(s);
            s.owner->on_no_room(s);
        } else {
            drive(s, [](presence::lease& l) { return l.on_abandoned(); });
        }
        break;
    case db::lease_outcome::released:
        drive(s, [](presence::lease& l) {
            l.on_released();
            return presence::action::none;
        });
        break;
    case db::lease_outcome::renewed:
        s.lease.on_renewed();
        if (s.owner != nullptr) {
            s.owner->on_moved(s);
            s.owner->on_renewed();
        }
        break;
    case db::lease_outcome::missing:
        drive(s, [](presence::lease& l) { return l.on_missing(); });
        break;
    }
}

std::vector<db::held_agent> leases::held_agents() {
    std::vector<db::held_agent> held;
    table_.for_each([&held](subscription const& s) {
        if (s.lease.is_live()) {
            held.push_back({s.agent, s.user});
        }
    });
    std::sort(held.begin(), held.end());
    held.erase(std::unique(held.begin(), held.end()), held.end());
    return held;
}

void leases::on_owners_changed(std::vector<db::held_agent> lost) {
    if (lost.empty()) {
        return;
    }
    std::sort(lost.begin(), lost.end());
    table_.for_each([&](subscription& s) {
        // One that is still asked for is refused by the database itself.
        if (!s.lease.is_live() ||
            !std::binary_search(lost.begin(), lost.end(), db::held_agent{s.agent, s.user})) {
            return;
        }
        auto* const holder = s.owner;
        try {
            if (holder != nullptr) {
                shared_.figures.lease_lost();
                holder->on_owner_changed(s); // which may end others of the table
            } else {
                give_up(s, presence::release_reason::disconnected); // its grace ends
            }
        } catch (std::exception const& failure) {
            if (holder != nullptr) {
                holder->fail("change of owner", failure);
            } else {
                spdlog::error("leases change of owner failed why=\"{}\"", failure.what());
            }
        }
    });
}

// Spread over a second, so that the database is not met by all of them at once. A renewal that is
// due before its moment is not put off for that: the database may come back again and again.
void leases::on_database_back(std::minstd_rand& random) {
    auto const now = wheel::clock::now();
    std::uniform_int_distribution spread{0, 1000};
    table_.for_each([&](subscription& s) {
        s.lease.on_database_back(now + std::chrono::milliseconds{spread(random)});
        if (s.owner != nullptr) {
            s.owner->on_moved(s);
        }
    });
}

} // namespace presenced::server
