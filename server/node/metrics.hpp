// Every figure that presenced tells about itself, in Prometheus form (docs/operations.md).
// Thread-safe. No agent and no token is ever a label.
#pragma once

#include "db/session/observer.hpp"
#include "db/store/store.hpp"
#include "protocol/message.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace presenced::server {

// Why a connection ended, when the server did not end it with a disconnect message.
enum class quiet_end : std::uint8_t { client_closed, lost, protocol_error };

// Why an upgrade was refused or a token turned away.
enum class auth_failure : std::uint8_t {
    no_token,
    unknown_token,
    expired_token,
    revoked_token,
    repeated_token, // 429: the same bad token again and again
    bad_origin,
    unavailable, // the database did not answer in time
};

enum class subscription_state : std::uint8_t { pending, confirmed, releasing };

class metrics final : public db::observer {
public:
    metrics(std::string_view version, std::string_view node);
    ~metrics() override;

    // Text exposition format. `health`, `ready` (what /readyz says) and the rest are of this
    // moment.
    std::string exposition(db::store_health const& health, bool ready);

    void connections_limit(std::size_t limit);
    void connection_opened();
    void connection_ended(protocol::disconnect_reason why);
    void connection_ended(quiet_end why);
    void subscriptions(subscription_state state, int change);
    void subscribed(std::chrono::nanoseconds took);
    void rejected(std::string_view cause);
    void bad_frame(std::string_view cause);
    void auth_failed(auth_failure cause);
    void lease_lost();
    void outbox_overflowed();
    // limit: "connections", "address", "owner", "descriptors", "request_timeout", "header_size":
    // refused; "input", "output", "subscribes": slowed down.
    void limited(std::string_view limit);
    // What HTTP or RFC 6455 forbids, refused.
    void bad_request(std::string_view cause);
    void http_answered(unsigned status);

    // db::observer
    void statement(std::string_view name, std::chrono::nanoseconds took, bool succeeded) override;
    void batch(std::string_view lane, std::size_t elements) override;
    void flipped(bool active, std::string_view reason) override;
    void renewals(std::string_view result, std::size_t count) override;
    void repaired(std::string_view cause, std::size_t count) override;
    void database_up(bool up) override;
    void warned() override;

private:
    struct figures;
    std::unique_ptr<figures> figures_;
};

} // namespace presenced::server
