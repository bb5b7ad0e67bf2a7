#include "server/shard.hpp"

#include "protocol/codec.hpp"
#include "server/cable_connection.hpp"
#include "server/http_session.hpp"
#include "server/threads.hpp"

#include <boost/asio/post.hpp>
#include <openssl/rand.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// How often live connections' tokens are looked up again: a revoked one ends within 30 s.
constexpr auto token_check_interval = 15s;

// Fine enough for the shortest interval, and no finer: each turn with something to do in it is a
// wake-up.
wheel::clock::duration granularity(presence::settings const& timings) {
    auto const shortest = std::min({timings.ping, timings.native_ping(), timings.heartbeat});
    return std::clamp<wheel::clock::duration>(shortest / 60, 5ms, 50ms);
}

// How many connections' pings fall on one moment, at most, while there is a choice: what else the
// shard has to do waits for them, a millisecond or two here.
constexpr std::size_t company = 128;

// When descriptors run out, an HTTP connection is left alone for so long: its request may be on its
// way.
constexpr auto time_to_ask = 50ms;

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

// Which state a lease counts as; nothing for those that are over.
std::optional<subscription_state> counted_as(presence::lease_state state) {
    switch (state) {
    case presence::lease_state::acquiring:
        return subscription_state::pending;
    case presence::lease_state::live:
        return subscription_state::confirmed;
    case presence::lease_state::abandoning:
    case presence::lease_state::releasing:
        return subscription_state::releasing;
    case presence::lease_state::lost:
    case presence::lease_state::ended:
        break;
    }
    return std::nullopt;
}

} // namespace

shard::shard(node& shared)
    : shared_{shared}
    , random_{std::random_device{}()}
    , work_{context_.get_executor()}
    , wheel_{context_, granularity(shared.timings)} {}

shard::~shard() {
    stop();
    wheel_.stop();
}

void shard::start() {
    asio::post(context_, [this] {
        wheel_.start();
        wheel_.schedule(token_check_, wheel::clock::now() + token_check_interval);
    });
    thread_ = start_thread("a shard", [this] {
        for (;;) {
            try {
                context_.run();
                return;
            } catch (std::exception const& e) {
                // A bug, or no memory: it ends what it was about, and nobody else's session.
                spdlog::error("shard handler failed, going on why=\"{}\"", e.what());
            }
        }
    });
}

void shard::stop() {
    if (!thread_.joinable()) {
        return;
    }
    context_.stop();
    thread_.join();
}

void shard::adopt(tcp_socket socket) {
    load_.fetch_add(1, std::memory_order_relaxed);
    asio::post(context_,
               [this, s = std::move(socket)]() mutable { start_http(*this, std::move(s)); });
}

// ---- HTTP -----------------------------------------------------------------------------------

void shard::keep_http(http_session& s) {
    s.arrived = wheel::clock::now();
    s.place = https_.insert(https_.end(), &s);
}

void shard::forget_http(http_session& s) {
    https_.erase(s.place);
    load_.fetch_sub(1, std::memory_order_relaxed);
}

void shard::close_older_http() {
    asio::post(context_, [this] {
        auto const old = wheel::clock::now() - time_to_ask;
        auto left = (https_.size() + 1) / 2;
        for (auto it = https_.begin(); it != https_.end() && left > 0; --left) {
            auto* s = *it++;
            if (s->arrived > old) {
                break; // and so are those behind it
            }
            if (s->is_expendable()) {
                s->drop();
            }
        }
    });
}

std::uint64_t shard::authenticate(db::token_digest const& digest,
                                  std::shared_ptr<http_session> asker) {
    auto const key = ++last_lookup_;
    lookups_.emplace(key, std::move(asker));
    store().authenticate({digest, this, key});
    return key;
}

void shard::forget_lookup(std::uint64_t lookup) {
    lookups_.erase(lookup);
}

void shard::deliver(std::vector<db::token_answer> answers) {
    asio::post(context_, [this, answers = std::move(answers)] {
        for (auto const& answer : answers) {
            if (auto const asker = lookups_.extract(answer.key)) {
                asker.mapped()->on_token(answer);
            }
        }
    });
}

// ---- Connections ----------------------------------------------------------------------------

wheel::clock::time_point shard::shared_moment(wheel::clock::time_point t) const {
    auto const ping = wheel::clock::duration{shared_.timings.ping};
    wheel::clock::duration const longest = shared_.timings.longest_step();
    auto step = granularity(shared_.timings);
    while (2 * step <= longest && cables_.size() * 2 * step <= company * ping) {
        step *= 2;
    }
    auto const since = t.time_since_epoch() + step - wheel::clock::duration{1};
    return wheel::clock::time_point{since - since % step};
}

frame const& shard::ping_frame() {
    auto const second = std::chrono::duration_cast<std::chrono::seconds>(
                            std::chrono::system_clock::now().time_since_epoch())
                            .count();
    if (ping_ == nullptr || second != ping_second_) {
        ping_second_ = second;
        ping_ = std::make_shared<std::string const>(protocol::encode_ping(second));
    }
    return ping_;
}

void shard::open_cable(std::shared_ptr<websocket> socket, cable_facts facts) {
    load_.fetch_add(1, std::memory_order_relaxed);
    standing_.fetch_add(1, std::memory_order_relaxed);
    auto made = std::make_unique<cable_connection>(*this, std::move(socket), std::move(facts));
    auto& c = *made;
    c.key = cables_.insert(std::move(made));
    c.begin();
}

void shard::remove(cable_connection& c) {
    load_.fetch_sub(1, std::memory_order_relaxed);
    standing_.fetch_sub(1, std::memory_order_relaxed);
    cables_.remove(c.key);
}

void shard::evict(protocol::disconnect_reason reason, std::size_t count) {
    asio::post(context_, [this, reason, count]() mutable {
        cables_.for_each([&](cable_connection& c) {
            if (count > 0 && !c.is_ending()) {
                c.end(reason);
                --count;
            }
        });
        // Nobody comes back to a node that goes away: graces end here.
        if (reason == protocol::disconnect_reason::server_restart) {
            end_lingering(wheel::clock::time_point::max());
        }
    });
}

// ---- Leases ---------------------------------------------------------------------------------

template <class Event>
void shard::drive(subscription& s, Event event) {
    auto const before = counted_as(s.lease.state());
    auto const what = event(s.lease);
    auto const after = counted_as(s.lease.state());
    if (before != after) {
        if (before) {
            shared_.figures.subscriptions(*before, -1);
        }
        if (after) {
            shared_.figures.subscriptions(*after, +1);
        }
    }
    try {
        perform(s, what);
    } catch (std::exception const&) {
        bury_if_over(s); // also when its owner cannot be told, for want of memory
        throw;
    }
    bury_if_over(s);
}

void shard::perform(subscription& s, presence::action what) {
    auto* const owner = s.owner;
    switch (what) {
    case presence::action::none:
        break;
    case presence::action::abandon:
        store().abandon(s.agent, s.lease.token());
        break;
    case presence::action::renew:
        store().renew({s.agent, s.lease.token(), this, s.key});
        break;
    case presence::action::release:
        if (s.lease.is_renewing()) {
            store().forget_renewal(s.agent, s.lease.token());
        }
        store().release({s.agent, s.lease.token(), s.lease.release_cause(), this, s.key});
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

void shard::bury_if_over(subscription& s) {
    if (s.lease.is_over()) {
        hub_.detach(s);
        held_.fetch_sub(1, std::memory_order_relaxed);
        leases_.remove(s.key);
    }
}

subscription& shard::subscribe(cable_connection& owner, presence::agent_id agent,
                               std::string identifier) {
    auto const now = wheel::clock::now();
    auto made = std::make_unique<subscription>(
        subscription{presence::lease{mint(), now}, agent, 0, &owner, std::move(identifier), now});
    auto& s = *made;
    s.key = leases_.insert(std::move(made));
    held_.fetch_add(1, std::memory_order_relaxed);
    shared_.figures.subscriptions(subscription_state::pending, +1);
    hub_.attach(s);
    return s;
}

void shard::ask(subscription& s, presence::owner_id user, std::optional<std::string> session_id) {
    s.unsent = false;
    store().acquire({s.agent, user, s.lease.token(), std::move(session_id), this, s.key});
}

bool shard::renew(subscription& s, wheel::clock::time_point now,
                  wheel::clock::time_point evidence) {
    auto waits = false;
    drive(s, [&](presence::lease& l) {
        auto const what = l.on_due(now, evidence, shared_.timings.heartbeat);
        waits = what == presence::action::none && !l.is_renewing();
        return what;
    });
    return !waits;
}

void shard::give_up(subscription& s, presence::release_reason why) {
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

void shard::linger(subscription& s) {
    s.owner = nullptr;
    s.identifier = {};
    hub_.detach(s);
    auto const until = wheel::clock::now() + shared_.timings.disconnect_grace;
    lingering_.push_back({until, s.key});
    if (lingering_.size() == 1) {
        wheel_.schedule(grace_, until);
    }
}

void shard::end_lingering(wheel::clock::time_point now) {
    while (!lingering_.empty() && lingering_.front().until <= now) {
        auto const key = lingering_.front().key;
        lingering_.pop_front();
        if (!lingering_.empty()) {
            // First: what follows may fail, and the others still have their time.
            wheel_.schedule(grace_, lingering_.front().until);
        }
        if (auto* s = leases_.find(key)) {
            give_up(*s, presence::release_reason::disconnected);
        }
    }
}

void shard::deliver(std::vector<db::lease_answer> answers) {
    asio::post(context_, [this, answers = std::move(answers)] {
        for (auto const& answer : answers) {
            auto* const s = leases_.find(answer.key);
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
                    spdlog::error("shard answer failed why=\"{}\"", failure.what());
                }
            }
        }
    });
}

void shard::on_answer(subscription& s, db::lease_outcome outcome) {
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
            s.owner->on_renewed();
        }
        break;
    case db::lease_outcome::missing:
        drive(s, [](presence::lease& l) { return l.on_missing(); });
        break;
    }
}

void shard::database_back() {
    asio::post(context_, [this] {
        auto const now = wheel::clock::now();
        leases_.for_each([now](subscription& s) { s.lease.on_database_back(now); });
        cables_.for_each([](cable_connection& c) { c.on_database_back(); });
    });
}

// ---- Tokens of live connections ---------------------------------------------------------------

void shard::check_tokens_soon() {
    wheel_.schedule(token_check_, wheel::clock::now());
}

void shard::check_tokens(wheel::clock::time_point now) {
    wheel_.schedule(token_check_, now + token_check_interval);
    if (checking_tokens_) {
        return; // the last answer has not come yet
    }
    std::vector<db::token_id> tokens;
    cables_.for_each([&](cable_connection& c) {
        if (!c.is_ending() && c.is_authorized()) {
            tokens.push_back(c.token());
        }
    });
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    if (!tokens.empty()) {
        store().check({std::move(tokens), this});
        checking_tokens_ = true; // the answer is still to be posted
    }
}

void shard::deliver_ended(std::vector<db::token_id> ended) {
    asio::post(context_, [this, ended = std::move(ended)]() mutable {
        checking_tokens_ = false;
        std::sort(ended.begin(), ended.end());
        cables_.for_each([&](cable_connection& c) {
            if (!c.is_ending() && std::binary_search(ended.begin(), ended.end(), c.token())) {
                c.on_token_ended();
            }
        });
    });
}

} // namespace presenced::server
