// Takes answers to their mailboxes: one call a mailbox and batch, and no lock held meanwhile.
#pragma once

#include "db/session/stop_signal.hpp"
#include "db/store/store.hpp"

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace presenced::db {

// Answers of one batch, by mailbox. One thread's.
template <class Answer>
class answer_batch {
public:
    void add(mailbox& box, Answer answer) {
        for (auto& [known, answers] : boxes_) {
            if (known == &box) {
                answers.push_back(std::move(answer));
                return;
            }
        }
        boxes_.emplace_back(&box, std::vector<Answer>{std::move(answer)});
    }

    // A mailbox gets a copy: should it throw, for want of memory, the next call delivers the rest.
    void deliver() {
        while (!boxes_.empty()) {
            auto const& [box, answers] = boxes_.back();
            box->deliver(answers);
            boxes_.pop_back();
        }
    }
    bool empty() const { return boxes_.empty(); }

private:
    std::vector<std::pair<mailbox*, std::vector<Answer>>> boxes_;
};

using lease_answers = answer_batch<lease_answer>;
using token_answers = answer_batch<token_answer>;

// Delivers what needs no database, at once, even while every other thread waits for one.
// Thread-safe.
class courier {
public:
    courier();
    ~courier();

    void send(mailbox& box, lease_answer answer);
    void send(mailbox& box, token_answer answer);

private:
    void run();
    bool step(lease_answers& leases, token_answers& tokens);

    std::mutex mutex_;
    std::condition_variable changed_;
    lease_answers leases_;
    token_answers tokens_;
    bool waiting_ = false;
    bool stopping_ = false;
    stop_signal stop_;
    std::thread thread_;
};

} // namespace presenced::db
