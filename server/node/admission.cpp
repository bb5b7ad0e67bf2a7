#include "server/node/admission.hpp"

#include <boost/asio/ip/address.hpp>

#include <algorithm>
#include <cstring>
#include <utility>

namespace presenced::server {

namespace {

constexpr unsigned tries = 3;
constexpr auto window = std::chrono::seconds{60};
// Bad tokens remembered in a generation, 2 MiB.
constexpr std::size_t remembered = 20'000;

// False when there are `most` of them already.
template <class Counts, class Key>
bool count_one(Counts& counts, Key const& key, std::size_t most) {
    auto& count = counts[key];
    if (count >= most) {
        return false;
    }
    ++count;
    return true;
}

template <class Counts, class Key>
void uncount_one(Counts& counts, Key const& key) {
    if (auto const it = counts.find(key); it != counts.end() && --it->second == 0) {
        counts.erase(it);
    }
}

} // namespace

admission_ticket::~admission_ticket() {
    if (from_ != nullptr) {
        from_->give_back(*this);
    }
}

std::string admission::key_of(std::string const& address) {
    boost::system::error_code ec;
    auto const parsed = boost::asio::ip::make_address(address, ec);
    if (ec || !parsed.is_v6() || parsed.to_v6().is_v4_mapped()) {
        return address;
    }
    auto bytes = parsed.to_v6().to_bytes();
    std::fill(bytes.begin() + 8, bytes.end(), static_cast<unsigned char>(0));
    return boost::asio::ip::address_v6{bytes}.to_string() + "/64";
}

admission::answer admission::admit(std::string const& address) {
    if (used_.fetch_add(1, std::memory_order_relaxed) >= limit_) {
        used_.fetch_sub(1, std::memory_order_relaxed);
        return {std::nullopt, refusal::full};
    }
    if (per_address_ != 0) {
        auto const key = key_of(address);
        std::lock_guard const lock{mutex_};
        if (!count_one(addresses_, key, per_address_)) {
            used_.fetch_sub(1, std::memory_order_relaxed);
            return {std::nullopt, refusal::address};
        }
    }
    return {admission_ticket{*this, address}, {}};
}

bool admission::admit_owner(admission_ticket& ticket, presence::owner_id owner) {
    if (per_owner_ == 0) {
        return true;
    }
    std::lock_guard const lock{mutex_};
    if (!count_one(owners_, owner, per_owner_)) {
        return false;
    }
    ticket.owner_ = owner;
    return true;
}

void admission::give_back(admission_ticket const& ticket) {
    used_.fetch_sub(1, std::memory_order_relaxed);
    if (per_address_ == 0 && !ticket.owner_) {
        return;
    }
    auto const key = per_address_ == 0 ? std::string{} : key_of(ticket.address());
    std::lock_guard const lock{mutex_};
    if (per_address_ != 0) {
        uncount_one(addresses_, key);
    }
    if (ticket.owner_) {
        uncount_one(owners_, *ticket.owner_);
    }
}

std::optional<std::chrono::seconds> admission::wait_after(attempts const& seen,
                                                          clock::time_point now) {
    if (seen.count < tries || now - seen.since >= window) {
        return std::nullopt;
    }
    return std::chrono::ceil<std::chrono::seconds>(seen.since + window - now);
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
    auto const wait = wait_after(seen, now);
    if (!wait) {
        ++seen.count;
    }
    return wait;
}

std::optional<std::chrono::seconds> admission::how_long_barred(db::token_digest const& digest,
                                                               clock::time_point now) {
    std::lock_guard const lock{mutex_};
    for (auto const* generation : {&young_, &old_}) {
        if (auto const it = generation->find(digest); it != generation->end()) {
            return wait_after(it->second, now);
        }
    }
    return std::nullopt;
}

void admission::forgive(db::token_digest const& digest) {
    std::lock_guard const lock{mutex_};
    young_.erase(digest);
    old_.erase(digest);
}

std::size_t admission::digest_hash::operator()(db::token_digest const& d) const {
    // It is a SHA-256: any part of it is a good hash.
    std::size_t h = 0;
    std::memcpy(&h, d.data(), sizeof h);
    return h;
}

} // namespace presenced::server
