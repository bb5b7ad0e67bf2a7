#include "server/auth/authenticator.hpp"

#include "server/auth/auth_host.hpp"

#include <openssl/sha.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <memory>
#include <string_view>
#include <utility>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

constexpr auto lookup_limit = 5s; // for the database to know a token

db::token_digest digest_of(std::string_view text) {
    db::token_digest digest;
    SHA256(reinterpret_cast<unsigned char const*>(text.data()), text.size(), digest.data());
    return digest;
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
                       std::function<void(authentication)> done)
        : home_{home}
        , digest_{digest}
        , done_{std::move(done)} {}

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
            done_(identify(answer, now));
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
        done_(std::move(result));
    }

    void drop() override {
        home_.timers().cancel(*this);
        done_ = nullptr; // it held the exchange
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
            done_(failed(auth_failure::unavailable));
        } catch (std::exception const& failure) {
            // For want of memory, say. The exchange has a deadline of its own.
            spdlog::error("http look-up deadline failed why=\"{}\"", failure.what());
        }
    }

    auth_host& home_;
    db::token_digest digest_;
    std::function<void(authentication)> done_;
    std::uint64_t number_ = 0;
};

} // namespace

void authenticate(auth_host& home, std::optional<std::string> const& token,
                  std::string const& address, std::function<void(authentication)> done) {
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
        done(std::move(refused));
    } else if (!token) {
        done(failed(auth_failure::no_token));
    } else {
        std::make_shared<lookup_in_progress>(home, digest, std::move(done))->start();
    }
}

} // namespace presenced::server
