#include "db/answers.hpp"

namespace presenced::db {

courier::courier()
    : thread_{[this] {
        run();
    }} {}

courier::~courier() {
    {
        std::lock_guard const lock{mutex_};
        stopping_ = true;
    }
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
    std::unique_lock lock{mutex_};
    for (;;) {
        changed_.wait(lock, [this] { return waiting_ || stopping_; });
        if (!waiting_) {
            return;
        }
        auto leases = std::exchange(leases_, {});
        auto tokens = std::exchange(tokens_, {});
        waiting_ = false;
        lock.unlock();
        leases.deliver();
        tokens.deliver();
        lock.lock();
    }
}

} // namespace presenced::db
