#include "server/node.hpp"

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
        return health.problem.empty() ? "database not reachable yet" : health.problem;
    }
    if (health.since_tick > timings.judge_window()) {
        return "renewals are not getting through: the last one committed " +
               (health.since_tick == std::chrono::milliseconds::max()
                    ? std::string{"never"}
                    : show_duration(health.since_tick) + " ago");
    }
    return {};
}

void node::set_start_problem(std::string problem) {
    std::lock_guard const lock{mutex_};
    start_problem_ = std::move(problem);
}

} // namespace presenced::server
