#include "server/http/routes.hpp"

#include "server/http/cable_upgrade.hpp"
#include "server/http/http_exchange.hpp"
#include "server/http/http_host.hpp"

#include <memory>

namespace presenced::server {

namespace {

void answer_health(std::shared_ptr<http_exchange> const& exchange) {
    exchange->answer({200, "ok\n"});
}

void answer_readiness(std::shared_ptr<http_exchange> const& exchange) {
    auto const problem = exchange->home().shared().why_not_ready();
    if (problem.empty()) {
        exchange->answer({200, "ready\n"});
    } else {
        exchange->answer({503, "not ready: " + problem + "\n"});
    }
}

void answer_metrics(std::shared_ptr<http_exchange> const& exchange) {
    auto& shared = exchange->home().shared();
    auto* store = shared.store.load();
    exchange->answer({200,
                      shared.figures.exposition(store ? store->health() : db::store_health{},
                                                shared.why_not_ready().empty()),
                      "text/plain; version=0.0.4; charset=utf-8"});
}

} // namespace

router make_routes(config const& settings) {
    router routes;
    routes.add({"GET", "/healthz", answer_health});
    routes.add({"GET", "/readyz", answer_readiness});
    routes.add({"GET", "/metrics", answer_metrics});
    routes.add({"GET", settings.path, upgrade_to_cable});
    routes.otherwise(answer_no_such_page);
    return routes;
}

} // namespace presenced::server
