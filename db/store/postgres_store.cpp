#include "db/store/postgres_store.hpp"

#include "db/store/answers.hpp"
#include "db/store/lookup.hpp"
#include "db/store/renewer.hpp"
#include "db/store/sweeper.hpp"
#include "db/store/transition_lane.hpp"

#include <algorithm>
#include <mutex>
#include <optional>
#include <vector>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// After stop()'s deadline a call under way has this long to end, and the node to say goodbye.
constexpr milliseconds last_call{500};

class postgres_store final : public store {
public:
    postgres_store(postgres_options options, observer& watcher)
        : options_{std::move(options)}
        , board_{watcher}
        , context_{options_.conninfo,
                   options_.call_timeout,
                   options_.timings.reconnect_limit(),
                   dog_,
                   board_,
                   watcher}
        , transitions_{options_.transition_lanes} {
        auto const lanes = std::max(options_.transition_lanes, 1U);
        std::vector<std::size_t> numbers;
        for (unsigned n = 0; n < lanes; ++n) {
            numbers.push_back(board_.add("transition", false));
        }
        auto const busy_number = board_.add("busy", false);
        auto const renewal_number = board_.add("renewal", true);
        auto const lookup_number = board_.add("lookup", false);
        auto const sweep_number = board_.add("sweep", false);
        try {
            for (unsigned n = 0; n < lanes; ++n) {
                lanes_.push_back(std::make_unique<transition_lane>(
                    n, context_, options_.node, numbers[n], transitions_, stop_));
            }
            busy_.emplace(context_, options_.node, busy_number, transitions_, stop_);
            renewer_.emplace(context_, options_, renewal_number, stop_);
            lookup_.emplace(context_, lookup_number, stop_);
            sweeper_.emplace(context_, options_, sweep_number, sweep_stop_);
        } catch (...) {
            end_threads();
            throw;
        }
    }

    ~postgres_store() override { stop(steady_clock::now()); }

    void acquire(acquire_request request) override {
        auto& box = *request.box;
        auto const key = request.key;
        if (!transitions_.push(std::move(request))) {
            courier_.send(box, lease_answer{key, lease_outcome::unavailable});
        }
    }

    void abandon(agent_id /*agent*/, lease_token const& token) override {
        if (auto const op = transitions_.abandon(token)) {
            courier_.send(*op->box, lease_answer{op->key, lease_outcome::abandoned});
        }
    }

    void release(release_request request) override { transitions_.push(request); }

    void renew(renew_request request) override { renewer_->push(request); }

    void forget_renewal(agent_id /*agent*/, lease_token const& token) override {
        renewer_->forget(token);
    }

    void authenticate(authenticate_request request) override {
        if (!lookup_->push(request)) {
            courier_.send(*request.box, token_answer{request.key, token_outcome::unavailable, 0, 0,
                                                     std::nullopt});
        }
    }

    void check(check_request request) override { lookup_->push(std::move(request)); }

    void subscribe_to_outages(mailbox& box) override { renewer_->tell_outages(box); }

    store_health health() const override {
        auto h = board_.health();
        h.oldest_renewal = renewer_->oldest();
        std::size_t waiting = 0;
        for (unsigned n = 0; n < lanes_.size(); ++n) {
            waiting += transitions_.depth(n);
        }
        h.queues = {{"transition", waiting},
                    {"busy", transitions_.busy_depth()},
                    {"renewal", renewer_->depth()},
                    {"lookup", lookup_->depth()}};
        return h;
    }

    std::size_t stop(steady_clock::time_point deadline) override {
        std::lock_guard const lock{stopping_};
        if (stopped_) {
            return left_;
        }
        stopped_ = true;
        sweep_stop_.raise();
        renewer_->stop_ticking();
        left_ = transitions_.wait_for_releases(deadline);
        dog_.limit(std::max(deadline, steady_clock::now() + last_call));
        end_threads();
        return left_;
    }

private:
    // Those that were started.
    void end_threads() {
        stop_.raise();
        sweep_stop_.raise();
        transitions_.stop();
        if (renewer_) {
            renewer_->wake();
        }
        if (lookup_) {
            lookup_->wake();
        }
        for (auto& lane : lanes_) {
            lane->join();
        }
        auto const join = [](auto& started) {
            if (started) {
                started->join();
            }
        };
        join(busy_);
        join(renewer_);
        join(lookup_);
        join(sweeper_);
    }

    // In this order: what threads use outlives them.
    postgres_options const options_;
    watchdog dog_;
    status_board board_;
    courier courier_;
    session_context const context_;
    transition_queue transitions_;
    stop_signal stop_;
    stop_signal sweep_stop_;
    std::vector<std::unique_ptr<transition_lane>> lanes_;
    std::optional<busy_lane> busy_;
    std::optional<renewer> renewer_;
    std::optional<lookup> lookup_;
    std::optional<sweeper> sweeper_;
    std::mutex stopping_; // one stop() at a time
    bool stopped_ = false;
    std::size_t left_ = 0;
};

} // namespace

std::unique_ptr<store> make_postgres_store(postgres_options options, observer& watcher) {
    return std::make_unique<postgres_store>(std::move(options), watcher);
}

} // namespace presenced::db
