#include "server/app/app.hpp"

#include "base/threads.hpp"
#include "server/app/listener.hpp"
#include "server/app/shard.hpp"
#include "server/http/routes.hpp"
#include "server/node/log.hpp"
#include "server/node/node.hpp"

#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <openssl/rand.h>
#include <spdlog/fmt/fmt.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <sys/resource.h>
#include <thread>
#include <vector>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;
using steady = std::chrono::steady_clock;

// Descriptors that are not for WebSockets: listeners, HTTP requests under way ...
constexpr std::size_t spare_descriptors = 256;
// ... an event loop's own (epoll, a timer, a wake-up), and a database session's with the
// watchdog's.
constexpr std::size_t of_a_loop = 3;
constexpr std::size_t of_a_session = 2;

constexpr auto longest_pause = 3s;            // between two searches for the database at start
constexpr auto first_reminder = 5s;           // of a database that is still not there ...
constexpr auto longest_silence = 60s;         // ... and the next ones, each after twice the time
constexpr auto finder_limit = 1s;             // for that search to end, when it is stopped
constexpr auto eviction_step = 50ms;          // clients are sent away in portions
constexpr double evictions_per_second = 1000; // at least; more when the deadline asks for it
constexpr auto last_releases = 2s;            // for the store, once the clients are gone

std::string random_id() {
    std::array<unsigned char, 4> bytes{};
    RAND_bytes(bytes.data(), static_cast<int>(bytes.size()));
    return fmt::format("{:02x}{:02x}{:02x}{:02x}", bytes[0], bytes[1], bytes[2], bytes[3]);
}

// Raises the limit to what the system allows and returns it.
std::size_t raise_descriptor_limit() {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

std::size_t connection_limit(config const& settings) {
    auto const descriptors = raise_descriptor_limit();
    auto const sessions = settings.transition_lanes() + 4; // see config::transition_lanes
    auto const reserved =
        spare_descriptors + of_a_loop * (settings.threads + 1) + of_a_session * sessions;
    auto const possible = descriptors > 2 * reserved ? descriptors - reserved : descriptors / 2;
    if (settings.max_connections && *settings.max_connections > possible) {
        spdlog::warn("app limit PRESENCED_MAX_CONNECTIONS={} is more than descriptors allow: "
                     "descriptors={} connections={}; raise LimitNOFILE or ulimit -n",
                     *settings.max_connections, descriptors, possible);
    }
    return std::min(settings.max_connections.value_or(possible), possible);
}

class app {
public:
    app(config const& settings, store_source const& from)
        : settings_{settings}
        , source_{from}
        , figures_{db::built_version(), settings.node}
        , node_{settings, figures_, connection_limit(settings)}
        , shards_{make_shards()}
        , listener_{context_, shards_}
        , signals_{context_, SIGINT, SIGTERM, SIGHUP}
        , timer_{context_}
        , monitor_{context_}
        , boot_id_{random_id()} {}

    int run();

private:
    std::vector<std::unique_ptr<shard>> make_shards() {
        std::vector<std::unique_ptr<shard>> made;
        for (unsigned i = 0; i < settings_.threads; ++i) {
            made.push_back(std::make_unique<shard>(node_, routes_));
        }
        return made;
    }

    // Runs the main loop until finish().
    void run_loop();

    // Starting, on a thread of its own: the database may keep us waiting.
    void find_database();
    // Nothing when the search is over; else why it goes on. Whatever is in the way may be gone the
    // next time.
    std::optional<std::string> try_to_find_database();
    void on_schema(db::schema_facts facts);
    void fail(std::string const& why, int code);

    // Stopping.
    void await_signal();
    void on_stop_signal(char const* name);
    void leave();
    void drain();
    void send_away();
    void tell_leases_left(std::size_t count) const;
    void finish(int code);

    // While serving: clients of a node that is cut off are sent to other nodes.
    void watch();
    void note_readiness();

    std::size_t standing() const {
        return total([](shard const& s) { return s.standing(); });
    }
    std::size_t held() const {
        return total([](shard const& s) { return s.held_leases(); });
    }
    template <class F>
    std::size_t total(F f) const {
        return std::accumulate(shards_.begin(), shards_.end(), std::size_t{0},
                               [&](std::size_t sum, auto const& s) { return sum + f(*s); });
    }
    void evict(protocol::disconnect_reason why, std::size_t count) {
        // Each shard has its share of them: the first one may have all the clients there are.
        auto const all = std::max<std::size_t>(1, standing());
        for (auto const& s : shards_) {
            s->evict(why, count * s->standing() / all + 1);
        }
    }

    config const& settings_;
    store_source const& source_;
    metrics figures_;
    node node_;
    router const routes_{make_routes(settings_)};
    std::vector<std::unique_ptr<shard>> shards_;
    // After the shards: the accept that it still holds at the end has a socket of one of theirs.
    asio::io_context context_{1};
    std::unique_ptr<db::store> store_;
    listener listener_;
    asio::signal_set signals_;
    asio::steady_timer timer_;
    asio::steady_timer monitor_;
    std::string boot_id_;

    std::thread finder_;
    std::mutex finder_mutex_;
    std::condition_variable finder_wake_;
    bool finder_stopping_ = false;
    bool finder_done_ = false;

    int signals_seen_ = 0;
    int cut_off_checks_ = 0;
    std::optional<steady::time_point> not_ready_since_;
    steady::time_point left_at_{};
    steady::time_point deadline_{};
    std::size_t portion_ = 0;
    int drained_code_ = 0;
    int exit_code_ = 0;
};

int app::run() {
    std::signal(SIGPIPE, SIG_IGN); // a peer that is gone is an error code, not a signal
    spdlog::info("app starting version={} node={} boot={} threads={} max_connections={} "
                 "database_connections={}",
                 db::built_version(), settings_.node, boot_id_, settings_.threads,
                 node_.admission_control.limit(), settings_.transition_lanes() + 4);
    std::string addresses;
    for (auto const& bound : listener_.listen(settings_.listen)) {
        addresses += (addresses.empty() ? "" : ",") + bound;
    }
    figures_.connections_limit(node_.admission_control.limit());
    await_signal();
    for (auto const& s : shards_) {
        s->start();
    }
    listener_.start();
    spdlog::info("app listening addresses={} path={}", addresses, settings_.path);
    finder_ = base::start_thread("the search for the database", [this] {
        find_database();
        std::lock_guard const lock{finder_mutex_};
        finder_done_ = true;
        finder_wake_.notify_all();
    });
    run_loop();

    {
        std::lock_guard const lock{finder_mutex_};
        finder_stopping_ = true;
    }
    finder_wake_.notify_all();
    {
        std::unique_lock lock{finder_mutex_};
        if (!finder_wake_.wait_for(lock, finder_limit, [this] { return finder_done_; })) {
            // It hangs in a call to a database that says nothing; there is nothing to release.
            spdlog::warn("app stopped while the database hung exit={}", exit_code_);
            flush_log(1s);
            std::_Exit(exit_code_);
        }
    }
    finder_.join();
    if (store_) {
        auto const left = store_->stop(steady::now() + last_releases);
        if (left > 0 && exit_code_ == 0) { // else finish() has said so
            tell_leases_left(left);
            exit_code_ = 1;
        }
    }
    for (auto const& s : shards_) {
        s->stop();
    }
    spdlog::info("app stopped exit={}", exit_code_);
    return exit_code_;
}

void app::run_loop() {
    for (;;) {
        try {
            context_.run();
            return;
        } catch (std::exception const& e) {
            // A bug, or no memory. What comes again has been asked for before its work began.
            spdlog::error("app handler failed, going on why=\"{}\"", e.what());
        }
    }
}

// ---- Starting -------------------------------------------------------------------------------

void app::find_database() {
    auto pause = std::chrono::milliseconds{100};
    std::string told;
    steady::time_point tell_again{};
    steady::duration silence{};
    std::minstd_rand random{std::random_device{}()};
    while (auto const why = try_to_find_database()) {
        bool const news = told != *why;
        if (auto const now = steady::now(); news || now >= tell_again) {
            silence =
                news ? first_reminder : std::min<steady::duration>(2 * silence, longest_silence);
            tell_again = now + silence;
            told = *why;
            spdlog::warn("app database not reachable, trying on why=\"{}\"", told);
        }
        std::uniform_int_distribution<std::int64_t> jitter{pause.count() / 2, pause.count()};
        std::unique_lock lock{finder_mutex_};
        if (finder_wake_.wait_for(lock, std::chrono::milliseconds{jitter(random)},
                                  [this] { return finder_stopping_; })) {
            return;
        }
        pause = std::min<std::chrono::milliseconds>(2 * pause, longest_pause);
    }
}

std::optional<std::string> app::try_to_find_database() {
    std::string why;
    try {
        try {
            auto const facts = source_.check_schema(settings_.conninfo);
            asio::post(context_, [this, facts] { on_schema(facts); });
            return std::nullopt;
        } catch (db::schema_error const& e) {
            asio::post(context_, [this, what = std::string{e.what()}] { fail(what, 1); });
            return std::nullopt;
        } catch (std::system_error const& e) {
            why = base::explain_thread_error(e); // of a thread that watches over the search
        } catch (std::exception const& e) {
            why = e.what();
        }
        node_.set_start_problem("database not reachable: " + why);
    } catch (std::exception const& e) {
        why = e.what(); // an exception that leaves a thread ends the process
    }
    return why;
}

void app::on_schema(db::schema_facts facts) {
    if (signals_seen_ > 0) {
        return;
    }
    try {
        node_.timings = settle_stale_after(settings_, facts.stale_after);
    } catch (bad_setting const& e) {
        fail(e.what(), 2);
        return;
    }
    db::postgres_options options;
    options.conninfo = settings_.conninfo;
    options.node = settings_.node;
    options.boot_id = boot_id_;
    options.version = db::built_version();
    options.timings = node_.timings;
    options.keep_transitions = settings_.transitions_keep;
    options.transition_lanes = settings_.transition_lanes();
    try {
        store_ = source_.open(std::move(options), figures_);
        for (auto const& s : shards_) {
            store_->subscribe_to_outages(*s);
        }
    } catch (std::system_error const& e) {
        fail("cannot start the database threads: " + base::explain_thread_error(e), 1);
        return;
    } catch (std::exception const& e) {
        fail(e.what(), 1);
        return;
    }
    node_.store.store(store_.get());
    node_.phase.store(node_phase::serving);
    spdlog::info("app serving schema={} stale_after={}", facts.version,
                 show_duration(facts.stale_after));
    watch();
}

void app::fail(std::string const& why, int code) {
    spdlog::error("app cannot start: {}", why);
    finish(code);
}

void app::watch() {
    monitor_.expires_after(1s);
    monitor_.async_wait([this](error_code ec) {
        // A check that was due already is not cancelled any more when the drain begins.
        auto const phase = node_.phase.load();
        if (ec || phase == node_phase::draining) {
            return;
        }
        watch(); // first: what follows may fail
        auto const health = store_->health();
        if (health.stale_after_changed && phase == node_phase::serving) { // else it leaves already
            spdlog::error("app leaves reason=\"{}\"", health.unfit);
            drained_code_ = 1;
            leave();
            return;
        }
        note_readiness();
        // Three checks in a row: after a stop of the whole process the first one says nothing.
        auto const away = health.unreachable_for;
        cut_off_checks_ = away > node_.timings.unreachable_limit ? cut_off_checks_ + 1 : 0;
        if (cut_off_checks_ >= 3 && standing() > 0) {
            if (cut_off_checks_ == 3) {
                spdlog::warn("app cut off from the database for {}: sending clients to other nodes "
                             "connections={}",
                             show_duration(away), standing());
            }
            evict(protocol::disconnect_reason::unavailable, standing() / 10 + 10);
        }
    });
}

// Whoever is sent away by /readyz finds the reason in the log, too.
void app::note_readiness() {
    auto const why = node_.why_not_ready();
    if (why.empty() != not_ready_since_.has_value()) {
        return;
    }
    if (!why.empty()) {
        not_ready_since_ = steady::now();
        spdlog::warn("app not ready why=\"{}\"", why);
    } else {
        spdlog::info(
            "app ready again after_ms={}",
            std::chrono::duration_cast<std::chrono::milliseconds>(steady::now() - *not_ready_since_)
                .count());
        not_ready_since_.reset();
    }
}

// ---- Stopping -------------------------------------------------------------------------------

void app::await_signal() {
    signals_.async_wait([this](error_code ec, int number) {
        if (ec) {
            return;
        }
        await_signal();
        if (number == SIGHUP) {
            // A terminal was closed, or somebody hopes for new settings.
            spdlog::info("app ignores signal=SIGHUP: it goes on with the settings it has; SIGTERM "
                         "drains and stops it");
            return;
        }
        on_stop_signal(number == SIGINT ? "SIGINT" : "SIGTERM");
    });
}

void app::on_stop_signal(char const* name) {
    if (++signals_seen_ > 1) {
        spdlog::warn("app stopping at once signal={}", name);
        finish(1);
        return;
    }
    spdlog::info("app stopping signal={} connections={} leases={}", name, standing(), held());
    if (node_.phase.load() <= node_phase::serving) { // else it is leaving already
        leave();
    }
}

void app::leave() {
    left_at_ = steady::now();
    if (node_.phase.load() == node_phase::starting) {
        finish(0);
        return;
    }
    node_.phase.store(node_phase::leaving);
    timer_.expires_after(settings_.drain_delay);
    timer_.async_wait([this](error_code ec) {
        if (!ec) {
            drain();
        }
    });
}

void app::drain() {
    node_.phase.store(node_phase::draining);
    monitor_.cancel();
    deadline_ = steady::now() + settings_.drain_timeout;
    // The clients come back somewhere else: they are sent over half of the time there is, and no
    // faster than need be.
    auto const half = std::chrono::duration<double>(settings_.drain_timeout) / 2;
    auto const rate = std::max(evictions_per_second,
                               static_cast<double>(standing()) / std::max(half.count(), 0.1));
    portion_ =
        static_cast<std::size_t>(rate * std::chrono::duration<double>(eviction_step).count()) + 1;
    send_away();
}

void app::send_away() {
    // Tickets count the upgrades, too, whose tokens are still being looked up.
    if (standing() == 0 && held() == 0 && node_.admission_control.connections() == 0) {
        auto const took =
            std::chrono::duration_cast<std::chrono::milliseconds>(steady::now() - left_at_);
        spdlog::info("app drained took={}", show_duration(took));
        finish(drained_code_);
        return;
    }
    if (steady::now() >= deadline_) {
        spdlog::error("app drain deadline connections={} leases={}", standing(), held());
        finish(1);
        return;
    }
    timer_.expires_after(eviction_step);
    timer_.async_wait([this](error_code ec) {
        if (!ec) {
            send_away();
        }
    });
    evict(protocol::disconnect_reason::server_restart, portion_); // last: it may fail
}

void app::tell_leases_left(std::size_t count) const {
    spdlog::error("app leaves leases={}: they run out by themselves within {}", count,
                  show_duration(node_.timings.stale_after + node_.timings.sweep));
}

void app::finish(int code) {
    if (code != 0 && held() > 0) {
        tell_leases_left(held());
    }
    exit_code_ = code;
    listener_.stop();
    signals_.cancel();
    timer_.cancel();
    monitor_.cancel();
    context_.stop();
}

} // namespace

store_source postgres() {
    return {
        [](std::string const& conninfo) { return db::check_schema(conninfo, db::built_version()); },
        db::make_postgres_store};
}

int serve(config const& settings, store_source const& from) {
    auto code = 1;
    try {
        code = app{settings, from}.run();
    } catch (std::exception const& e) {
        spdlog::error("app cannot start: {}", e.what());
    }
    flush_log(1s);
    return code;
}

} // namespace presenced::server
