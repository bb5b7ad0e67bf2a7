#include "server/node/metrics.hpp"

#include "server/node/log.hpp"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <fstream>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <sys/resource.h>

namespace presenced::server {

namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using seconds = std::chrono::duration<double>;

Histogram::BucketBoundaries const latency{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                          0.1,    0.25,  0.5,    1,     2.5,  5,     10};
Histogram::BucketBoundaries const sizes{1, 2, 5, 10, 20, 50, 100, 200, 500};

constexpr std::array auth_causes{"no_token",      "unknown_token",  "expired_token",
                                 "revoked_token", "repeated_token", "bad_origin",
                                 "unavailable"};
constexpr std::array quiet_ends{"client_closed", "lost", "protocol_error"};
constexpr std::array states{"pending", "confirmed", "releasing"};

// One metric of a family for each value of one label, made when it is first met. The values come
// from the program, never from a client, so there are few.
template <class Metric>
class labelled {
public:
    labelled(prometheus::Family<Metric>& family, char const* label)
        : family_{family}
        , label_{label} {}

    template <class... Rest>
    Metric& operator()(std::string_view value, Rest const&... rest) {
        {
            std::shared_lock const reading{mutex_};
            if (auto const it = known_.find(value); it != known_.end()) {
                return *it->second;
            }
        }
        std::unique_lock const writing{mutex_};
        auto& metric = family_.Add({{label_, std::string{value}}}, rest...);
        known_.emplace(value, &metric);
        return metric;
    }

private:
    prometheus::Family<Metric>& family_;
    char const* label_;
    std::shared_mutex mutex_;
    std::map<std::string, Metric*, std::less<>> known_;
};

// The registry, and how a family is made in it. A base, so that it is complete before the members
// of figures are initialised.
struct registered {
    prometheus::Registry registry;

    template <class Builder>
    auto& family(Builder builder, char const* name, char const* help) {
        return builder.Name(name).Help(help).Register(registry);
    }
    Gauge& gauge(char const* name, char const* help) {
        return family(prometheus::BuildGauge(), name, help).Add({});
    }
    Counter& counter(char const* name, char const* help) {
        return family(prometheus::BuildCounter(), name, help).Add({});
    }
};

} // namespace

struct metrics::figures : registered {
    std::mutex reading;
    Gauge& connections = gauge("presenced_connections", "WebSocket connections that are open now.");
    Gauge& connections_limit =
        gauge("presenced_connections_limit", "WebSocket connections that this node takes at most.");
    Counter& opened =
        counter("presenced_connections_opened_total", "WebSocket connections since the start.");
    labelled<Gauge> subscriptions{family(prometheus::BuildGauge(), "presenced_subscriptions",
                                         "Subscriptions of this node by state."),
                                  "state"};
    Histogram& subscribe_seconds =
        family(prometheus::BuildHistogram(), "presenced_subscribe_seconds",
               "From a subscribe command to its confirmation.")
            .Add({}, latency);
    labelled<Counter> disconnects{family(prometheus::BuildCounter(), "presenced_disconnects_total",
                                         "Connections that ended, by reason."),
                                  "reason"};
    labelled<Counter> rejections{family(prometheus::BuildCounter(), "presenced_rejections_total",
                                        "Subscribes that were rejected, by cause."),
                                 "cause"};
    labelled<Counter> auth_failures{family(prometheus::BuildCounter(),
                                           "presenced_auth_failures_total",
                                           "Upgrades turned away, by cause."),
                                    "cause"};
    labelled<Counter> bad_frames{family(prometheus::BuildCounter(), "presenced_bad_frames_total",
                                        "Frames that were no command, by cause."),
                                 "cause"};
    labelled<Counter> limits{family(prometheus::BuildCounter(), "presenced_limits_hit_total",
                                    "Connections refused or slowed down by a limit, by limit."),
                             "limit"};
    labelled<Counter> bad_requests{family(prometheus::BuildCounter(),
                                          "presenced_bad_requests_total",
                                          "Requests that HTTP or RFC 6455 forbids, by cause."),
                                   "cause"};
    labelled<Counter> http{family(prometheus::BuildCounter(), "presenced_http_responses_total",
                                  "HTTP responses other than upgrades, by status."),
                           "status"};
    Counter& leases_lost =
        counter("presenced_leases_lost_total",
                "Leases that a live session lost: somebody removed the row, or gave the "
                "agent to another owner.");
    Counter& outbox_overflows =
        counter("presenced_outbox_overflows_total", "Connections ended because they did not read.");

    labelled<Counter> renewals{
        family(prometheus::BuildCounter(), "presenced_renewals_total", "Renewals by result."),
        "result"};
    prometheus::Family<Counter>& flips = family(prometheus::BuildCounter(), "presenced_flips_total",
                                                "Routing flags this node changed.");
    labelled<Counter> repairs{
        family(prometheus::BuildCounter(), "presenced_sweep_repairs_total",
               "What this node's sweep put right: stale rows (expired), flags (reconciled)."),
        "cause"};
    Gauge& is_ready = gauge("presenced_ready", "1 while /readyz says ready.");
    Gauge& database = gauge("presenced_database_up", "1 while the database answers.");
    Counter& database_warnings =
        counter("presenced_database_warnings_total", "What PostgreSQL said beside its answers.");
    labelled<Histogram> statements{family(prometheus::BuildHistogram(),
                                          "presenced_database_seconds",
                                          "Round trips to the database by statement."),
                                   "statement"};
    labelled<Counter> failures{family(prometheus::BuildCounter(),
                                      "presenced_database_failures_total",
                                      "Round trips to the database that failed, by statement."),
                               "statement"};
    labelled<Histogram> batches{family(prometheus::BuildHistogram(), "presenced_batch_size",
                                       "Requests in a batch, by lane."),
                                "lane"};
    labelled<Gauge> queues{family(prometheus::BuildGauge(), "presenced_queue_depth",
                                  "Requests that wait for the database, by lane."),
                           "lane"};
    Gauge& oldest_renewal = gauge("presenced_oldest_renewal_seconds",
                                  "Age of the oldest renewal that waits for the database.");
    Gauge& since_tick = gauge("presenced_last_tick_age_seconds",
                              "Since the newest tick landed, of any node; -1 before the first.");
    Gauge& since_sweep = gauge("presenced_last_sweep_age_seconds",
                               "Since this node last swept; -1 if it did not. One node does.");
    Counter& log_dropped = counter("presenced_log_lines_dropped_total",
                                   "Log lines dropped because nobody read stderr.");
    Gauge& start_time = gauge("process_start_time_seconds", "When this process started.");
    Counter& cpu = counter("process_cpu_seconds_total", "Processor time used, user and system.");
    Gauge& resident = gauge("process_resident_memory_bytes", "Resident memory.");
    Gauge& max_fds = gauge("process_max_fds", "Descriptors this process may open.");
};

metrics::metrics(std::string_view version, std::string_view node)
    : figures_{std::make_unique<figures>()} {
    figures_
        ->family(prometheus::BuildGauge(), "presenced_build_info", "1, labelled with the version.")
        .Add({{"version", std::string{version}}, {"node", std::string{node}}})
        .Set(1);
    for (auto const* state : states) {
        figures_->subscriptions(state).Set(0);
    }
    for (auto const* cause : {"unknown_token", "bad_origin"}) {
        figures_->auth_failures(cause);
    }
    for (auto const* result : {"renewed", "missing", "held"}) {
        figures_->renewals(result);
    }
    figures_->start_time.SetToCurrentTime();
}

metrics::~metrics() = default;

std::string metrics::exposition(db::store_health const& health, bool ready) {
    auto const age = [](std::chrono::milliseconds d) {
        return d == std::chrono::milliseconds::max() ? -1.0 : seconds{d}.count();
    };
    figures_->is_ready.Set(ready ? 1 : 0);
    figures_->since_tick.Set(age(health.since_tick));
    figures_->since_sweep.Set(age(health.since_sweep));
    figures_->oldest_renewal.Set(age(health.oldest_renewal));
    for (auto const& q : health.queues) {
        figures_->queues(q.lane).Set(static_cast<double>(q.depth));
    }
    auto const has_become = [this](Counter& counter, double now) {
        std::lock_guard const lock{figures_->reading}; // each shard may be scraped
        counter.Increment(std::max(0.0, now - counter.Value()));
    };
    has_become(figures_->log_dropped, static_cast<double>(dropped_log_lines()));
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    auto const of = [](timeval const& t) {
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    has_become(figures_->cpu, of(usage.ru_utime) + of(usage.ru_stime));
    std::size_t pages = 0;
    if (std::ifstream statm{"/proc/self/statm"}; statm >> pages >> pages) {
        figures_->resident.Set(static_cast<double>(pages) *
                               static_cast<double>(sysconf(_SC_PAGESIZE)));
    }
    rlimit descriptors{};
    getrlimit(RLIMIT_NOFILE, &descriptors);
    figures_->max_fds.Set(static_cast<double>(descriptors.rlim_cur));
    return prometheus::TextSerializer{}.Serialize(figures_->registry.Collect());
}

void metrics::connections_limit(std::size_t limit) {
    figures_->connections_limit.Set(static_cast<double>(limit));
}

void metrics::connection_opened() {
    figures_->opened.Increment();
    figures_->connections.Increment();
}

void metrics::connection_ended(protocol::disconnect_reason why) {
    figures_->connections.Decrement();
    figures_->disconnects(protocol::to_string(why)).Increment();
}

void metrics::connection_ended(quiet_end why) {
    figures_->connections.Decrement();
    figures_->disconnects(quiet_ends[static_cast<std::size_t>(why)]).Increment();
}

void metrics::subscriptions(subscription_state state, int change) {
    figures_->subscriptions(states[static_cast<std::size_t>(state)]).Increment(change);
}

void metrics::subscribed(std::chrono::nanoseconds took) {
    figures_->subscribe_seconds.Observe(seconds{took}.count());
}

void metrics::rejected(std::string_view cause) {
    figures_->rejections(cause).Increment();
}

void metrics::bad_frame(std::string_view cause) {
    figures_->bad_frames(cause).Increment();
}

void metrics::auth_failed(auth_failure cause) {
    figures_->auth_failures(auth_causes[static_cast<std::size_t>(cause)]).Increment();
}

void metrics::lease_lost() {
    figures_->leases_lost.Increment();
}

void metrics::outbox_overflowed() {
    figures_->outbox_overflows.Increment();
}

void metrics::limited(std::string_view limit) {
    figures_->limits(limit).Increment();
}

void metrics::bad_request(std::string_view cause) {
    figures_->bad_requests(cause).Increment();
}

void metrics::http_answered(unsigned status) {
    figures_->http(std::to_string(status)).Increment();
}

void metrics::statement(std::string_view name, std::chrono::nanoseconds took, bool succeeded) {
    figures_->statements(name, latency).Observe(seconds{took}.count());
    if (!succeeded) {
        figures_->failures(name).Increment();
    }
}

void metrics::batch(std::string_view lane, std::size_t elements) {
    figures_->batches(lane, sizes).Observe(static_cast<double>(elements));
}

void metrics::flipped(bool active, std::string_view reason) {
    // A family hands out the same counter for the same labels.
    figures_->flips.Add({{"direction", active ? "on" : "off"}, {"reason", std::string{reason}}})
        .Increment();
}

void metrics::renewals(std::string_view result, std::size_t count) {
    figures_->renewals(result).Increment(static_cast<double>(count));
}

void metrics::repaired(std::string_view cause, std::size_t count) {
    figures_->repairs(cause).Increment(static_cast<double>(count));
}

void metrics::database_up(bool up) {
    figures_->database.Set(up ? 1 : 0);
}

void metrics::warned() {
    figures_->database_warnings.Increment();
}

} // namespace presenced::server
