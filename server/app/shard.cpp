#include "server/app/shard.hpp"

#include "base/threads.hpp"
#include "protocol/codec.hpp"
#include "server/cable/cable_connection.hpp"
#include "server/http/http_session.hpp"

#include <boost/asio/post.hpp>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// How often live connections' tokens, and the owners of their agents, are looked up again: a
// revoked token ends within 30 s.
constexpr auto token_check_interval = 15s;

// Fine enough for the shortest interval, and no finer: each turn with something to do in it is a
// wake-up.
wheel::clock::duration granularity(presence::settings const& timings) {
    auto const shortest = std::min({timings.ping, timings.native_ping(), timings.heartbeat});
    return std::clamp<wheel::clock::duration>(shortest / 60, 5ms, 50ms);
}

// How many connections' pings fall on one moment, at most, while there is a choice: what else the
// shard has to do waits for them, a millisecond or two here.
constexpr std::size_t pings_a_moment = 128;

// When descriptors run out, an HTTP connection is left alone for so long: its request may be on its
// way.
constexpr auto time_to_ask = 50ms;

// Between two tries of a database thread to hand over its answers.
constexpr auto pause_without_memory = 10ms;

// One more in a count for as long as it lives.
class counted {
public:
    explicit counted(std::atomic<std::size_t>& count)
        : count_{&count} {
        count.fetch_add(1, std::memory_order_relaxed);
    }
    counted(counted&& other) noexcept
        : count_{std::exchange(other.count_, nullptr)} {}
    ~counted() {
        if (count_ != nullptr) {
            count_->fetch_sub(1, std::memory_order_relaxed);
        }
    }

private:
    std::atomic<std::size_t>* count_;
};

} // namespace

shard::shard(node& shared, router const& routes)
    : shared_{shared}
    , routes_{routes}
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
    thread_ = base::start_thread("a shard", [this] {
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
    // It counts from now on, and keep_http() counts it for as long as it speaks HTTP.
    asio::post(context_, [this, count = counted{load_}, s = std::move(socket)]() mutable {
        start_http(*this, std::move(s));
    });
}

// ---- HTTP -----------------------------------------------------------------------------------

void shard::keep_http(http_session& s) {
    s.arrived = wheel::clock::now();
    https_.push_back(s);
    load_.fetch_add(1, std::memory_order_relaxed);
}

void shard::forget_http(http_session& s) {
    if (s.place.is_linked()) {
        https_.erase(https_.iterator_to(s));
        load_.fetch_sub(1, std::memory_order_relaxed);
    }
}

void shard::close_older_http() {
    asio::post(context_, [this] {
        auto const old = wheel::clock::now() - time_to_ask;
        auto left = (https_.size() + 1) / 2;
        for (auto it = https_.begin(); it != https_.end() && left > 0; --left) {
            auto& s = *it++;
            if (s.arrived > old) {
                break; // and so are those behind it
            }
            if (s.is_expendable()) {
                s.drop();
            }
        }
    });
}

std::uint64_t shard::authenticate(db::token_digest const& digest,
                                  std::shared_ptr<token_asker> asker) {
    auto const key = ++last_lookup_;
    lookups_.emplace(key, std::move(asker));
    try {
        store().authenticate({digest, this, key});
    } catch (std::exception const&) {
        lookups_.erase(key);
        throw;
    }
    return key;
}

void shard::forget_lookup(std::uint64_t lookup) {
    lookups_.erase(lookup);
}

// ---- Connections ----------------------------------------------------------------------------

wheel::clock::time_point shard::shared_moment(wheel::clock::time_point t) const {
    auto const ping = wheel::clock::duration{shared_.timings.ping};
    wheel::clock::duration const longest = shared_.timings.longest_step();
    auto step = granularity(shared_.timings);
    while (2 * step <= longest && cables_.size() * 2 * step <= pings_a_moment * ping) {
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

void shard::open_cable(std::shared_ptr<websocket> socket, client_info client) {
    auto made = std::make_unique<cable_connection>(*this, std::move(socket), std::move(client));
    auto& c = *made;
    c.key = cables_.insert(std::move(made));
    load_.fetch_add(1, std::memory_order_relaxed);
    standing_.fetch_add(1, std::memory_order_relaxed);
    try {
        c.begin();
    } catch (std::exception const& failure) {
        c.fail("handshake", failure);
    }
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
            leases_.end_graces();
        }
    });
}

// ---- Answers of the database ------------------------------------------------------------------

template <class Batch, class Take>
void shard::hand_over(Batch batch, Take take) noexcept {
    std::shared_ptr<Batch> kept;
    for (;;) {
        try {
            if (kept == nullptr) {
                kept = std::make_shared<Batch>(std::move(batch));
            }
            asio::post(context_, [kept, take] { take(*kept); });
            return;
        } catch (std::exception const&) {
            // An answer that were lost would leave its lease where it is for good.
            std::this_thread::sleep_for(pause_without_memory);
        }
    }
}

void shard::deliver(std::vector<db::lease_answer> answers) {
    hand_over(std::move(answers),
              [this](std::vector<db::lease_answer> const& all) { leases_.on_answers(all); });
}

void shard::deliver(std::vector<db::token_answer> answers) {
    hand_over(std::move(answers), [this](std::vector<db::token_answer> const& all) {
        for (auto const& answer : all) {
            auto const asker = lookups_.extract(answer.key);
            if (!asker) {
                continue;
            }
            try {
                asker.mapped()->on_token(answer);
            } catch (std::exception const& failure) {
                asker.mapped()->drop(); // the answers behind it are others'
                spdlog::error("http look-up failed, dropped why=\"{}\"", failure.what());
            }
        }
    });
}

void shard::deliver(db::check_answer answer) {
    hand_over(std::move(answer), [this](db::check_answer& all) { on_checked(all); });
}

void shard::database_back() {
    hand_over(0, [this](int) {
        leases_.on_database_back(random_);
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
    std::vector<db::token_grant> tokens;
    cables_.for_each([&](cable_connection& c) {
        if (!c.is_ending() && c.who() != nullptr) {
            tokens.push_back(c.who()->grant());
        }
    });
    std::sort(tokens.begin(), tokens.end());
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    // Tokens that run out one after the other bring many checks: the agents are asked about in the
    // regular ones only.
    std::vector<db::held_agent> agents;
    if (now >= next_owner_check_) {
        next_owner_check_ = now + token_check_interval;
        agents = leases_.held_agents();
    }
    if (!tokens.empty() || !agents.empty()) {
        store().check({std::move(tokens), std::move(agents), this});
        checking_tokens_ = true; // the answer is still to be posted
    }
}

void shard::on_checked(db::check_answer& answer) {
    checking_tokens_ = false;
    auto& ended = answer.ended;
    std::sort(ended.begin(), ended.end());
    if (!ended.empty()) {
        cables_.for_each([&](cable_connection& c) {
            if (!c.is_ending() && c.who() != nullptr &&
                std::binary_search(ended.begin(), ended.end(), c.who()->grant())) {
                c.on_token_ended();
            }
        });
    }
    leases_.on_owners_changed(std::move(answer.lost));
}

} // namespace presenced::server
