#include "server/auth/authenticator.hpp"

#include "server/auth/auth_host.hpp"

#include <openssl/evp.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

constexpr auto lookup_limit = 5s; // for the database to know a token

// SHA-256. The context of a thread is used again and again: OpenSSL's SHA256() looks the algorithm
// up and makes a context each time.
class hasher {
public:
    hasher()
        : context_{EVP_MD_CTX_new()} {
        check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
    }

    db::token_digest hash(std::string_view text) {
        db::token_digest digest;
        check(EVP_DigestInit_ex(context_.get(), nullptr, nullptr) == 1 &&
              EVP_DigestUpdate(context_.get(), text.data(), text.size()) == 1 &&
              EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr) == 1);
        return digest;
    }

private:
    struct deleter {
        void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
    };
    static void check(bool is_fine) {
        if (!is_fine) {
            throw std::runtime_error{"OpenSSL cannot compute a SHA-256"};
        }
    }

    std::unique_ptr<EVP_MD_CTX, deleter> context_;
};

db::token_digest digest_of(std::string_view text) {
    static thread_local hasher sha256;
    return sha256.hash(text);
}

authentication failed(auth_failure why) {
    authentication result;
    result.why = why;
    return result;
}

auth_failure why_refused(db::token_outcome outcome) {
    switch (outcome) {
    case db::token_outcome::expired:
        return auth_failure::expired_token;
    case db::token_outcome::revoked:
        return auth_failure::revoked_token;
    case db::token_outcome::unavailable:
        return auth_failure::unavailable;
    case db::token_outcome::valid:
    case db::token_outcome::unknown:
        break;
    }
    return auth_failure::unknown_token;
}

// One token that is being looked up. The shard keeps it until it is answered or forgotten.
class lookup_in_progress final : public token_asker,
                                 public std::enable_shared_from_this<lookup_in_progress>,
                                 private wheel::entry {
public:
    lookup_in_progress(auth_host& home, db::token_digest const& digest,
                       std::unique_ptr<authentication_waiter> waiter)
        : home_{home}
        , digest_{digest}
        , waiter_{std::move(waiter)} {}

    void start() {
        home_.timers().schedule(*this, wheel::clock::now() + lookup_limit);
        number_ = home_.authenticate(digest_, shared_from_this());
    }

    void on_token(db::token_answer const& answer) override {
        home_.timers().cancel(*this);
        auto& admissions = home_.shared().admission_control;
        auto const now = wheel::clock::now();
        if (answer.outcome == db::token_outcome::valid) {
            admissions.forgive(digest_);
            waiter_->on_authenticated(identify(answer, now));
            return;
        }
        auto result = failed(why_refused(answer.outcome));
        result.token = answer.id;
        result.owner = answer.owner;
        if (result.why != auth_failure::unavailable) {
            if (auto const wait = admissions.turned_away(digest_, now)) {
                result.why = auth_failure::repeated_token;
                result.wait = *wait;
            }
        }
        waiter_->on_authenticated(std::move(result));
    }

    void drop() override {
        home_.timers().cancel(*this);
        waiter_.reset(); // it holds the exchange
    }

private:
    static authentication identify(db::token_answer const& answer, wheel::clock::time_point now) {
        authentication result;
        result.who = identity{answer.owner, presence::time_point::max(), answer.id, answer.agents,
                              answer.role};
        if (answer.expires_in) {
            result.who->expires_at = now + *answer.expires_in;
        }
        return result;
    }

    void on_deadline(wheel::clock::time_point) override {
        auto const self = shared_from_this(); // the shard lets go of it
        try {
            home_.forget_lookup(number_);
            waiter_->on_authenticated(failed(auth_failure::unavailable));
        } catch (std::exception const& failure) {
            // For want of memory, say. The exchange has a deadline of its own.
            spdlog::error("http look-up deadline failed why=\"{}\"", failure.what());
        }
    }

    auth_host& home_;
    db::token_digest digest_;
    std::unique_ptr<authentication_waiter> waiter_;
    std::uint64_t number_ = 0;
};

} // namespace

void authenticate(auth_host& home, std::optional<std::string> const& token,
                  std::string const& address, std::unique_ptr<authentication_waiter> waiter) {
    auto const digest = digest_of(token ? *token : "no token, from " + admission::key_of(address));
    auto& admissions = home.shared().admission_control;
    auto const now = wheel::clock::now();
    auto wait = admissions.how_long_barred(digest, now);
    if (!wait && !token) {
        wait = admissions.turned_away(digest, now);
    }
    if (wait) {
        auto refused = failed(auth_failure::repeated_token);
        refused.wait = *wait;
        waiter->on_authenticated(std::move(refused));
    } else if (!token) {
        waiter->on_authenticated(failed(auth_failure::no_token));
    } else {
        std::make_shared<lookup_in_progress>(home, digest, std::move(waiter))->start();
    }
}

} // namespace presenced::server
