// Takes answers to their mailboxes: one call a mailbox and batch, and no lock held meanwhile.
#pragma once

#include "db/store.hpp"

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

    void deliver() {
        for (auto& [box, answers] : boxes_) {
            box->deliver(std::move(answers));
        }
        boxes_.clear();
    }

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

    std::mutex mutex_;
    std::condition_variable changed_;
    lease_answers leases_;
    token_answers tokens_;
    bool waiting_ = false;
    bool stopping_ = false;
    std::thread thread_;
};

} // namespace presenced::db
