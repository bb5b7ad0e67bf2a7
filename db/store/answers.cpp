#include "db/store/answers.hpp"

#include "base/threads.hpp"
#include "db/session/thread.hpp"

namespace presenced::db {

courier::courier()
    : thread_{base::start_thread("the database", [this] { run(); })} {}

courier::~courier() {
    {
        std::lock_guard const lock{mutex_};
        stopping_ = true;
    }
    stop_.raise();
    changed_.notify_one();
    thread_.join();
}

void courier::send(mailbox& box, lease_answer answer) {
    {
        std::lock_guard const lock{mutex_};
        leases_.add(box, answer);
        waiting_ = true;
    }
    changed_.notify_one();
}

void courier::send(mailbox& box, token_answer answer) {
    {
        std::lock_guard const lock{mutex_};
        tokens_.add(box, answer);
        waiting_ = true;
    }
    changed_.notify_one();
}

void courier::run() {
    lease_answers leases;
    token_answers tokens;
    keep_going(
        "courier", stop_, [&] { return step(leases, tokens); }, [] {});
}

bool courier::step(lease_answers& leases, token_answers& tokens) {
    if (leases.empty() && tokens.empty()) {
        std::unique_lock lock{mutex_};
        changed_.wait(lock, [this] { return waiting_ || stopping_; });
        if (!waiting_) {
            return false;
        }
        std::swap(leases, leases_);
        std::swap(tokens, tokens_);
        waiting_ = false;
    }
    leases.deliver();
    tokens.deliver();
    return true;
}

} // namespace presenced::db
