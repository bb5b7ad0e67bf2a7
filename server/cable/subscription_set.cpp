#include "server/cable/subscription_set.hpp"

#include <algorithm>
#include <utility>

namespace presenced::server {

namespace {

// So many are looked through, one by one: an index would cost every ordinary connection its memory.
constexpr std::size_t few = 16;

} // namespace

void subscription_set::add(subscription& s) {
    if (by_identifier_ == nullptr && size() == few) {
        auto made = std::make_unique<index>();
        for (auto& one : all_) {
            made->emplace(one.identifier, &one);
        }
        by_identifier_ = std::move(made);
    }
    if (by_identifier_ != nullptr) {
        by_identifier_->emplace(s.identifier, &s);
    }
    s.filed = lease_group::unsent;
    all_.insert(s);
}

void subscription_set::remove(subscription& s) noexcept {
    if (by_identifier_ != nullptr) {
        by_identifier_->erase(s.identifier);
    }
    all_.erase(all_.iterator_to(s));
    if (all_.empty()) {
        by_identifier_.reset();
    }
}

void subscription_set::file(subscription& s) noexcept {
    if (!s.is_linked()) {
        return;
    }
    switch (s.lease.state()) {
    case presence::lease_state::acquiring:
        move(s, s.unsent ? lease_group::unsent : lease_group::asked);
        break;
    case presence::lease_state::live:
        if (s.lease.is_renewing()) {
            move(s, lease_group::renewing);
        } else if (s.filed != lease_group::waiting) {
            move(s, lease_group::due);
        }
        break;
    default: // it is about to be removed
        break;
    }
}

presence::time_point subscription_set::time_of(subscription const& s) {
    switch (s.filed) {
    case lease_group::unsent:
    case lease_group::asked:
        return s.lease.asked_at();
    case lease_group::due:
    case lease_group::waiting:
        return s.lease.renewal_due();
    case lease_group::renewing:
        break;
    }
    return {};
}

void subscription_set::move(subscription& s, lease_group to) noexcept {
    all_.erase(all_.iterator_to(s));
    s.filed = to;
    all_.insert(s);
}

subscription* subscription_set::find(std::string_view identifier) {
    if (by_identifier_ != nullptr) {
        ++visits_;
        auto const it = by_identifier_->find(identifier);
        return it == by_identifier_->end() ? nullptr : it->second;
    }
    for (auto& s : all_) {
        ++visits_;
        if (s.identifier == identifier) {
            return &s;
        }
    }
    return nullptr;
}

subscription const* subscription_set::first(lease_group group) const {
    auto const it = all_.lower_bound(place{group, presence::time_point::min()});
    return it != all_.end() && it->filed == group ? &*it : nullptr;
}

subscription* subscription_set::first(lease_group group) {
    return const_cast<subscription*>(std::as_const(*this).first(group));
}

lease_times subscription_set::times() const {
    lease_times times;
    if (all_.empty()) {
        return times;
    }
    times.any_confirmed = all_.rbegin()->filed >= lease_group::due;
    if (auto const* s = first(lease_group::unsent)) {
        times.any_unsent = true;
        times.oldest_pending = time_of(*s);
    }
    if (auto const* s = first(lease_group::asked)) {
        times.oldest_pending = std::min(times.oldest_pending, time_of(*s));
    }
    // While one waits for evidence, the others find out by their connection's pings.
    if (auto const* s = first(lease_group::due); s != nullptr && !any_put_off()) {
        times.next_renewal = time_of(*s);
    }
    return times;
}

subscription* subscription_set::first_unsent() {
    return first(lease_group::unsent);
}

subscription* subscription_set::first_due(presence::time_point by) {
    auto* const s = first(lease_group::due);
    return s != nullptr && time_of(*s) <= by ? s : nullptr;
}

void subscription_set::put_off(subscription& s) noexcept {
    move(s, lease_group::waiting);
}

void subscription_set::take_up() noexcept {
    while (auto* const s = first(lease_group::waiting)) {
        move(*s, lease_group::due);
    }
}

} // namespace presenced::server
