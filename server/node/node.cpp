#include "server/node/node.hpp"

namespace presenced::server {

std::string node::why_not_ready() const {
    switch (phase.load()) {
    case node_phase::starting: {
        std::lock_guard const lock{mutex_};
        return start_problem_;
    }
    case node_phase::leaving:
    case node_phase::draining:
        return "draining: this node is going away";
    case node_phase::serving:
        break;
    }
    auto const health = store.load()->health();
    if (!health.reachable || !health.writable) {
        // Without a problem it is connected to, and has just not written anything.
        return health.problem.empty() ? "no renewal has got through to the database yet; pg_locks "
                                        "shows who holds agent_subscriptions"
                                      : health.problem;
    }
    if (!health.unfit.empty()) {
        return health.unfit;
    }
    if (health.since_tick > timings.judge_window()) {
        return "ticks are not getting through, and lease time stands still: the last one landed " +
               (health.since_tick == std::chrono::milliseconds::max()
                    ? std::string{"never"}
                    : show_duration(std::chrono::ceil<std::chrono::seconds>(health.since_tick)) +
                          " ago") +
               "; pg_locks shows who holds agent_subscriptions or presence_clock";
    }
    return {};
}

void node::set_start_problem(std::string problem) {
    std::lock_guard const lock{mutex_};
    start_problem_ = std::move(problem);
}

} // namespace presenced::server
