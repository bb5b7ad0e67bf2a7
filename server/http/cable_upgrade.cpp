#include "server/http/cable_upgrade.hpp"

#include "base/text.hpp"
#include "protocol/credentials.hpp"
#include "protocol/origin.hpp"
#include "protocol/subprotocol.hpp"
#include "server/auth/authenticator.hpp"
#include "server/auth/client_info.hpp"
#include "server/http/http_exchange.hpp"
#include "server/http/http_host.hpp"
#include "server/node/log.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

constexpr unsigned refusals_a_second = 10; // in the log, of each kind
constexpr std::string_view websocket_version = "13";

// What a peer sent, for the log: quoted where it could pass for something else, and cut.
std::string shown(std::string_view text) {
    return log_value(text.substr(0, 200));
}

std::string_view view(boost::beast::string_view s) {
    return {s.data(), s.size()};
}

// A request that does not become a cable connection because of what it is.
struct upgrade_refusal {
    unsigned status;
    std::string_view why;
    std::string cure;
};

void log_refusal(http_exchange const& exchange, upgrade_refusal const& refusal) {
    static thread_local line_limit limit{refusals_a_second};
    auto const more = limit.admit();
    if (!more) {
        return;
    }
    auto const& request = exchange.request();
    auto const client = exchange.client();
    auto const target = view(request.target());
    // A query that was joined or escaped wrongly is a query still, and may hold a token.
    auto const path = target.substr(0, target.find_first_of("?&;=%#"));
    spdlog::warn("http upgrade refused status={} why=\"{}\" path={} origin={} host={} http={}.{} "
                 "address={} cure=\"{}\"{}",
                 refusal.status, refusal.why, shown(path),
                 shown(field_list{request, "Origin"}.text()), shown(client.host),
                 request.version() / 10, request.version() % 10, client.address, refusal.cure,
                 *more);
}

void answer_not_found(http_exchange& exchange, std::string_view why, std::string cure) {
    log_refusal(exchange, {404, why, std::move(cure)});
    exchange.answer(refuse(404, "Page not found"));
}

// ---- What is asked of an upgrade before anybody asks who it is --------------------------------

bool is_origin_fine(http_exchange& exchange) {
    auto& shared = exchange.home().shared();
    field_list const origin{exchange.request(), "Origin"};
    auto const is_sent = exchange.request().find("Origin") != exchange.request().end();
    if (protocol::is_origin_allowed(is_sent ? std::optional<std::string_view>{origin.text()}
                                            : std::nullopt,
                                    exchange.client().host, shared.settings.allowed_origins)) {
        return true;
    }
    shared.figures.auth_failed(auth_failure::bad_origin);
    auto const entry = protocol::pattern_for_origin(origin.text());
    answer_not_found(exchange, "origin not allowed",
                     entry ? "let the proxy pass the Host header on, or add " + *entry +
                                 " to PRESENCED_ALLOWED_ORIGINS"
                           : "this Origin is none that a page can have; send none, or "
                             "scheme://host");
    return false;
}

// 16 bytes in base64 (RFC 6455 section 4.1).
bool is_websocket_key(std::string_view key) {
    auto const is_digit = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '+' || c == '/';
    };
    return key.size() == 24 && key.ends_with("==") &&
           std::all_of(key.begin(), key.end() - 2, is_digit);
}

// RFC 6455 section 4.2.1, as far as it is not the Host, the origin and the upgrade itself.
bool is_handshake_fine(http_exchange& exchange) {
    auto const& request = exchange.request();
    auto& figures = exchange.home().shared().figures;
    if (field_list{request, "Sec-WebSocket-Version"}.text() != websocket_version) {
        figures.bad_request("websocket_version");
        log_refusal(exchange, {426, "not WebSocket version 13",
                               "use a client that speaks RFC 6455, and a proxy that passes "
                               "Sec-WebSocket-Version on"});
        auto refusal = refuse(426, "This server speaks WebSocket version 13 (RFC 6455).");
        refusal.fields.emplace_back("Sec-WebSocket-Version", websocket_version);
        refusal.fields.emplace_back("Upgrade", "websocket");
        exchange.answer(std::move(refusal));
        return false;
    }
    if (!is_websocket_key(field_list{request, "Sec-WebSocket-Key"}.text())) {
        figures.bad_request("websocket_key");
        log_refusal(exchange, {400, "no Sec-WebSocket-Key of 16 bytes",
                               "use a client that speaks RFC 6455, and a proxy that passes "
                               "Sec-WebSocket-Key on"});
        exchange.answer(refuse(400, "The Sec-WebSocket-Key is missing or is not 16 bytes."));
        return false;
    }
    return true;
}

// Whether the node takes clients at all now.
bool is_node_serving(http_exchange& exchange) {
    switch (exchange.home().shared().phase.load()) {
    case node_phase::starting:
        exchange.answer(try_later("This node is starting.", 5s));
        return false;
    case node_phase::draining:
        exchange.answer(try_later("This node is going away.", 1s));
        return false;
    case node_phase::serving:
    case node_phase::leaving:
        break;
    }
    return true;
}

std::optional<admission_ticket> find_room(http_exchange& exchange, std::string const& address) {
    auto& shared = exchange.home().shared();
    auto admitted = shared.admission_control.admit(address);
    if (!admitted.ticket) {
        auto const full = admitted.why == admission::refusal::full;
        shared.figures.limited(full ? "connections" : "address");
        exchange.answer(try_later(
            full ? "This node is full." : "There are too many connections from this address.", 5s));
    }
    return std::move(admitted.ticket);
}

// ---- Who it is ----------------------------------------------------------------------------------

std::string_view name_of(auth_failure cause) {
    switch (cause) {
    case auth_failure::no_token:
        return "none";
    case auth_failure::expired_token:
        return "expired";
    case auth_failure::revoked_token:
        return "revoked";
    default:
        return "unknown";
    }
}

void log_bad_token(authentication const& result, client_info const& facts) {
    static thread_local line_limit limit{refusals_a_second};
    if (auto const more = limit.admit()) {
        std::string const whose = result.token == 0 ? std::string{}
                                                    : " token=" + std::to_string(result.token) +
                                                          " owner=" + std::to_string(result.owner);
        spdlog::info("http token refused conn={} address={} cause={}{}{}", facts.number,
                     facts.ticket.address(), name_of(result.why), whose, *more);
    }
}

void log_full_owner(identity const& who, client_info const& facts, std::size_t limit_per_owner) {
    static thread_local line_limit limit{refusals_a_second};
    if (auto const more = limit.admit()) {
        spdlog::warn("http upgrade refused status=503 why=\"too many connections of this owner\" "
                     "owner={} token={} address={} limit={} "
                     "cure=\"raise PRESENCED_MAX_CONNECTIONS_PER_OWNER, or end some\"{}",
                     who.owner, who.token, facts.ticket.address(), limit_per_owner, *more);
    }
}

void accept(http_exchange& exchange, client_info facts) {
    field_list const offered{exchange.request(), "Sec-WebSocket-Protocol"};
    exchange.upgrade(protocol::choose_subprotocol(offered.text()), std::move(facts));
}

void on_identified(http_exchange& exchange, authentication result, client_info facts) {
    auto& shared = exchange.home().shared();
    if (shared.phase.load() == node_phase::draining) {
        exchange.answer(try_later("This node is going away.", 1s));
        return;
    }
    if (result.who) {
        if (!shared.admission_control.admit_owner(facts.ticket, result.who->owner)) {
            shared.figures.limited("owner");
            log_full_owner(*result.who, facts, shared.settings.max_connections_per_owner);
            exchange.answer(try_later("There are too many connections of this owner.", 5s));
            return;
        }
        facts.who = std::move(result.who);
        accept(exchange, std::move(facts));
        return;
    }
    shared.figures.auth_failed(result.why);
    if (result.why == auth_failure::unavailable) {
        exchange.answer(try_later("The database did not answer in time.", 5s));
    } else if (result.why == auth_failure::repeated_token) {
        exchange.answer(
            try_later("This token was refused three times within a minute.", result.wait, 429));
    } else {
        log_bad_token(result, facts);
        accept(exchange, std::move(facts));
    }
}

// An upgrade that waits to know whose it is.
class upgrade_under_way final : public authentication_waiter {
public:
    upgrade_under_way(std::shared_ptr<http_exchange> exchange, client_info facts)
        : exchange_{std::move(exchange)}
        , facts_{std::move(facts)} {}

    void on_authenticated(authentication result) override {
        on_identified(*exchange_, std::move(result), std::move(facts_));
    }

private:
    std::shared_ptr<http_exchange> exchange_;
    client_info facts_;
};

} // namespace

void upgrade_to_cable(std::shared_ptr<http_exchange> const& exchange) {
    if (!asks_for_websocket(exchange->request())) {
        answer_not_found(*exchange, "no WebSocket upgrade",
                         "connect with a WebSocket client; a proxy in front must speak HTTP/1.1 "
                         "and pass the Upgrade and Connection headers on");
        return;
    }
    if (!is_origin_fine(*exchange) || !is_handshake_fine(*exchange) ||
        !is_node_serving(*exchange)) {
        return;
    }
    auto const address = exchange->client().address;
    auto ticket = find_room(*exchange, address);
    if (!ticket) {
        return;
    }
    static std::atomic<std::uint64_t> counter{0};
    client_info facts;
    facts.number = ++counter;
    facts.ticket = std::move(*ticket);
    auto const token = protocol::find_token(view(exchange->request().target()),
                                            value_of(exchange->request(), "Authorization"));
    authenticate(exchange->home(), token, address,
                 std::make_unique<upgrade_under_way>(exchange, std::move(facts)));
}

void answer_no_such_page(std::shared_ptr<http_exchange> const& exchange) {
    if (asks_for_websocket(exchange->request())) {
        answer_not_found(*exchange, "no cable at this path",
                         "connect to " + exchange->home().shared().settings.path +
                             " (PRESENCED_PATH)");
        return;
    }
    exchange->answer({404, "Page not found\n"});
}

} // namespace presenced::server
