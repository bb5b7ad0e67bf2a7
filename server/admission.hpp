// Who may come in: how many connections, how many from one address, and which bad tokens have been
// tried too often. Thread-safe: shared by all shards.
#pragma once

#include "db/store.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace presenced::server {

// A place for one connection, given back when it is destroyed.
class admission;
class admission_ticket {
public:
    admission_ticket() = default;
    admission_ticket(admission& from, std::string address)
        : from_{&from}
        , address_{std::move(address)} {}
    admission_ticket(admission_ticket&& other) noexcept
        : from_{std::exchange(other.from_, nullptr)}
        , address_{std::move(other.address_)} {}
    admission_ticket& operator=(admission_ticket&& other) noexcept {
        std::swap(from_, other.from_);
        std::swap(address_, other.address_);
        return *this;
    }
    ~admission_ticket();

    std::string const& address() const { return address_; }

private:
    admission* from_ = nullptr;
    std::string address_;
};

class admission {
public:
    using clock = std::chrono::steady_clock;

    // per_address: 0 for any number.
    admission(std::size_t connections, std::size_t per_address)
        : limit_{connections}
        , per_address_{per_address} {}

    enum class refusal : std::uint8_t { full, address };
    struct answer {
        std::optional<admission_ticket> ticket;
        refusal why = refusal::full; // when there is no ticket
    };
    answer admit(std::string const& address);

    std::size_t connections() const { return used_.load(std::memory_order_relaxed); }
    std::size_t limit() const { return limit_; }

    // A token was turned away. Returns how long its bearer has to wait when it has come too often
    // (three times within a minute): some clients retry a closed socket every second for ever, and
    // back off only from a refused upgrade.
    std::optional<std::chrono::seconds> turned_away(db::token_digest const& digest,
                                                    clock::time_point now);

private:
    friend class admission_ticket;
    void give_back(std::string const& address);

    struct attempts {
        clock::time_point since;
        unsigned count = 0;
    };
    struct digest_hash {
        std::size_t operator()(db::token_digest const& d) const;
    };

    std::size_t limit_;
    std::size_t per_address_;
    std::atomic<std::size_t> used_{0};
    std::mutex mutex_;
    std::unordered_map<std::string, std::size_t> addresses_;
    // Two generations: a token that comes again moves to the younger one, the older one is
    // forgotten as a whole, so that a flood of different ones fills no memory and drives nobody out
    // at once.
    using bad_tokens = std::unordered_map<db::token_digest, attempts, digest_hash>;
    bad_tokens young_;
    bad_tokens old_;
    clock::time_point young_since_{};
};

} // namespace presenced::server
