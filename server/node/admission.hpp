// Who may come in: how many connections in all, from one address and of one owner, and which bad
// tokens have been tried too often. Thread-safe: shared by all shards.
#pragma once

#include "db/store/store.hpp"
#include "presence/types.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace presenced::server {

class admission;

// A place for one connection, given back when it is destroyed.
class admission_ticket {
public:
    admission_ticket() = default;
    admission_ticket(admission& from, std::string address)
        : from_{&from}
        , address_{std::move(address)} {}
    admission_ticket(admission_ticket&& other) noexcept
        : from_{std::exchange(other.from_, nullptr)}
        , address_{std::move(other.address_)}
        , owner_{std::exchange(other.owner_, std::nullopt)} {}
    admission_ticket& operator=(admission_ticket&& other) noexcept {
        std::swap(from_, other.from_);
        std::swap(address_, other.address_);
        std::swap(owner_, other.owner_);
        return *this;
    }
    ~admission_ticket();

    // The whole address, as the log shows it.
    std::string const& address() const { return address_; }

private:
    friend class admission;

    admission* from_ = nullptr;
    std::string address_;
    std::optional<presence::owner_id> owner_; // as whose connection it is counted
};

class admission {
public:
    using clock = std::chrono::steady_clock;

    // per_address, per_owner: 0 for any number.
    admission(std::size_t connections, std::size_t per_address, std::size_t per_owner = 0)
        : limit_{connections}
        , per_address_{per_address}
        , per_owner_{per_owner} {}

    // What stands for an address where addresses are counted: itself for IPv4, its /64 for IPv6,
    // for that is what one subscriber line or one machine is given (RFC 6177, RFC 7421).
    static std::string key_of(std::string const& address);

    enum class refusal : std::uint8_t { full, address };
    struct answer {
        std::optional<admission_ticket> ticket;
        refusal why = refusal::full; // when there is no ticket
    };
    answer admit(std::string const& address);

    // Once it is known whose connection it is. False when the owner has as many as allowed.
    bool admit_owner(admission_ticket& ticket, presence::owner_id owner);

    std::size_t connections() const { return used_.load(std::memory_order_relaxed); }
    std::size_t limit() const { return limit_; }

    // A token was turned away. Returns how long its bearer has to wait when it has come too often
    // (three times within a minute): some clients retry a closed socket every second for ever, and
    // back off only from a refused upgrade.
    std::optional<std::chrono::seconds> turned_away(db::token_digest const& digest,
                                                    clock::time_point now);
    // The same without counting: whether the token needs no look-up, for it is bad for certain, or
    // was a minute ago.
    std::optional<std::chrono::seconds> how_long_barred(db::token_digest const& digest,
                                                        clock::time_point now);
    // The token turned out to be good.
    void forgive(db::token_digest const& digest);

private:
    friend class admission_ticket;
    void give_back(admission_ticket const& ticket);

    struct attempts {
        clock::time_point since;
        unsigned count = 0;
    };
    // How long the bearer of a token with these attempts has to wait, if at all.
    static std::optional<std::chrono::seconds> wait_after(attempts const& seen,
                                                          clock::time_point now);
    struct digest_hash {
        std::size_t operator()(db::token_digest const& d) const;
    };

    std::size_t limit_;
    std::size_t per_address_;
    std::size_t per_owner_;
    std::atomic<std::size_t> used_{0};
    std::mutex mutex_;
    std::unordered_map<std::string, std::size_t> addresses_;
    std::unordered_map<presence::owner_id, std::size_t> owners_;
    // Two generations: a token that comes again moves to the younger one, the older one is
    // forgotten as a whole, so that a flood of different ones fills no memory and drives nobody out
    // at once.
    using bad_tokens = std::unordered_map<db::token_digest, attempts, digest_hash>;
    bad_tokens young_;
    bad_tokens old_;
    clock::time_point young_since_{};
};

} // namespace presenced::server
