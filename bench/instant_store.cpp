#include "bench/instant_store.hpp"

#include <utility>

namespace presenced::bench {

namespace {

using db::lease_outcome;

// Answers in the call: a mailbox only posts, so that the asker hears of it later all the same.
class instant_store final : public db::store {
public:
    void acquire(db::acquire_request r) override { answer(*r.box, r.key, lease_outcome::acquired); }
    void abandon(db::agent_id, db::lease_token const&) override {} // `acquired` is on its way
    void release(db::release_request r) override { answer(*r.box, r.key, lease_outcome::released); }
    void renew(db::renew_request r) override { answer(*r.box, r.key, lease_outcome::renewed); }
    void forget_renewal(db::agent_id, db::lease_token const&) override {}
    void authenticate(db::authenticate_request r) override {
        r.box->deliver(
            std::vector{db::token_answer{r.key, db::token_outcome::valid, 1, 1, std::nullopt}});
    }
    void check(db::check_request r) override { r.box->deliver(db::check_answer{}); }
    void subscribe_to_outages(db::mailbox&) override {}
    db::store_health health() const override {
        db::store_health h;
        h.reachable = true;
        h.writable = true;
        h.since_tick = std::chrono::milliseconds{0};
        return h;
    }
    std::size_t stop(std::chrono::steady_clock::time_point) override { return 0; }

private:
    static void answer(db::mailbox& box, std::uint64_t key, lease_outcome outcome) {
        box.deliver(std::vector{db::lease_answer{key, outcome}});
    }
};

} // namespace

server::store_source instant() {
    return {[](std::string const&) {
                return db::schema_facts{1, std::chrono::seconds{45}};
            },
            [](db::postgres_options, db::observer&) -> std::unique_ptr<db::store> {
                return std::make_unique<instant_store>();
            }};
}

} // namespace presenced::bench
