// A timer wheel: one steady_timer wakes a shard for all the deadlines of all its connections, and
// only when there is one.
// Deadlines are met up to one granularity late, never early.
// Not thread-safe: everything on the shard's thread.
#pragma once

#include "server/loop/net.hpp"
#include "server/loop/uptime.hpp"

#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <cstddef>
#include <vector>

namespace presenced::server {

class wheel {
public:
    using clock = std::chrono::steady_clock;

    // Something with one deadline at a time. Unschedules itself when destroyed.
    class entry {
    public:
        entry() = default;
        entry(entry const&) = delete;
        entry& operator=(entry const&) = delete;

    protected:
        ~entry() { unlink(); }

    private:
        friend class wheel;
        // The deadline has come. May schedule again, may destroy entries, this one included. When
        // it throws, the others go on, but this one has no deadline any more.
        virtual void on_deadline(clock::time_point now) = 0;
        void unlink();

        entry* next_ = nullptr;
        entry** link_ = nullptr; // what points to this one; null when not scheduled
        clock::time_point deadline_{};
    };

    wheel(asio::io_context& context, clock::duration granularity);

    void start();
    // Nothing fires after this.
    void stop();

    // Sets or moves the deadline.
    void schedule(entry& e, clock::time_point deadline);
    void cancel(entry& e) { e.unlink(); }

    // This moment, as this thread has lived it.
    moment now() { return uptime_.at(clock::now()); }

private:
    void arm();
    void wait_for(std::size_t slot);
    void turn();
    std::size_t slot_of(clock::time_point t) const;

    asio::basic_waitable_timer<clock, asio::wait_traits<clock>, executor> timer_;
    clock::duration granularity_;
    clock::time_point start_;
    uptime uptime_;
    bool stopped_ = false;
    std::size_t position_ = 0; // slots before this one have been fired
    std::size_t awaited_ = 0;  // the timer is set for this one, 0 while it is not to be
    std::vector<entry*> slots_;
};

// What an object does at its own times: calls one of its members.
template <class Owner>
class chore final : public wheel::entry {
public:
    using job = void (Owner::*)(wheel::clock::time_point now);
    chore(Owner& owner, job what)
        : owner_{owner}
        , job_{what} {}

private:
    void on_deadline(wheel::clock::time_point now) override { (owner_.*job_)(now); }
    Owner& owner_;
    job job_;
};

} // namespace presenced::server
