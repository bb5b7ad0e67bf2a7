#include "server/admission.hpp"

#include <cstring>
#include <utility>

namespace presenced::server {

namespace {

constexpr unsigned tries = 3;
constexpr auto window = std::chrono::seconds{60};
// Bad tokens remembered in a generation, 2 MiB.
constexpr std::size_t remembered = 20'000;

} // namespace

admission_ticket::~admission_ticket() {
    if (from_ != nullptr) {
        from_->give_back(address_);
    }
}

admission::answer admission::admit(std::string const& address) {
    if (used_.fetch_add(1, std::memory_order_relaxed) >= limit_) {
        used_.fetch_sub(1, std::memory_order_relaxed);
        return {std::nullopt, refusal::full};
    }
    if (per_address_ != 0) {
        std::lock_guard const lock{mutex_};
        auto& count = addresses_[address];
        if (count >= per_address_) {
            used_.fetch_sub(1, std::memory_order_relaxed);
            return {std::nullopt, refusal::address};
        }
        ++count;
    }
    return {admission_ticket{*this, address}, {}};
}

void admission::give_back(std::string const& address) {
    used_.fetch_sub(1, std::memory_order_relaxed);
    if (per_address_ != 0) {
        std::lock_guard const lock{mutex_};
        if (auto const it = addresses_.find(address); it != addresses_.end() && --it->second == 0) {
            addresses_.erase(it);
        }
    }
}

std::optional<std::chrono::seconds> admission::turned_away(db::token_digest const& digest,
                                                           clock::time_point now) {
    std::lock_guard const lock{mutex_};
    if (young_.size() >= remembered || now - young_since_ >= window) {
        old_ = std::exchange(young_, {});
        young_since_ = now;
    }
    young_.insert(old_.extract(digest));
    auto& seen = young_[digest];
    if (seen.count == 0 || now - seen.since >= window) {
        seen = {now, 0};
    }
    if (seen.count >= tries) {
        return std::chrono::ceil<std::chrono::seconds>(seen.since + window - now);
    }
    ++seen.count;
    return std::nullopt;
}

std::size_t admission::digest_hash::operator()(db::token_digest const& d) const {
    // It is a SHA-256: any part of it is a good hash.
    std::size_t h = 0;
    std::memcpy(&h, d.data(), sizeof h);
    return h;
}

} // namespace presenced::server
