// The subscriptions of one connection: by identifier, and by what they wait for. A client may have
// as many as PRESENCED_MAX_SUBSCRIPTIONS, so nothing in here looks at all of them.
// They live elsewhere (leases.hpp); this one only knows them. Not thread-safe.
#pragma once

#include "server/cable/deadlines.hpp"
#include "server/cable/subscription.hpp"

#include <boost/intrusive/set.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <unordered_map>

namespace presenced::server {

class subscription_set {
public:
    ~subscription_set() { all_.clear(); }

    // Throws std::bad_alloc; then it is not in here.
    void add(subscription& s);
    void remove(subscription& s) noexcept;
    // Its lease has moved on. Harmless when it is not in here.
    void file(subscription& s) noexcept;

    std::size_t size() const { return all_.size(); }
    bool empty() const { return all_.empty(); }
    // Null when there is none.
    subscription* find(std::string_view identifier);
    // Any of them; there must be one.
    subscription& last() { return *all_.rbegin(); }

    lease_times times() const;
    // The next one to ask the store for; null when there is none.
    subscription* first_unsent();
    // One whose renewal is due by then; null when there is none.
    subscription* first_due(presence::time_point by);
    // Its renewal is due, and waits for evidence.
    void put_off(subscription& s) noexcept;
    bool any_put_off() const { return first(lease_group::waiting) != nullptr; }
    // There is evidence: those that wait for it are due again.
    void take_up() noexcept;

    // How many subscriptions the calling thread has looked at in here so far: what tests count,
    // where a time would say how busy the machine is.
    static std::uint64_t visits() { return visits_; }

private:
    struct place {
        lease_group group;
        presence::time_point time;
        auto operator<=>(place const&) const = default;
    };
    struct place_of {
        using type = place;
        place operator()(subscription const& s) const { return {s.filed, time_of(s)}; }
    };
    struct counted_less {
        bool operator()(place const& a, place const& b) const {
            ++visits_;
            return a < b;
        }
    };
    using index = std::unordered_map<std::string_view, subscription*>;

    // Where it stands in its group. The lease says it, so whoever changes the lease has it filed
    // anew before anything else is done with the set.
    static presence::time_point time_of(subscription const& s);
    subscription const* first(lease_group group) const;
    subscription* first(lease_group group);
    void move(subscription& s, lease_group to) noexcept;

    boost::intrusive::multiset<subscription, boost::intrusive::key_of_value<place_of>,
                               boost::intrusive::compare<counted_less>>
        all_;
    std::unique_ptr<index> by_identifier_; // of many; few are faster looked through
    static inline thread_local std::uint64_t visits_ = 0;
};

} // namespace presenced::server
