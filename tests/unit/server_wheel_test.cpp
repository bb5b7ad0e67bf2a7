#include "server/loop/wheel.hpp"
#include "tests/support/catch.hpp"

#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

using clock_type = wheel::clock;

class alarm_clock final : public wheel::entry {
public:
    std::function<void(clock_type::time_point)> rings;

private:
    void on_deadline(clock_type::time_point now) override { rings(now); }
};

// Runs until nothing is left to do, or for too long.
void run(asio::io_context& context) {
    context.run_for(20s);
}

} // namespace

TEST_CASE("a wheel meets every deadline once, in order, never early") {
    asio::io_context context{1};
    wheel w{context, 2ms};
    w.start();
    auto const start = clock_type::now();
    // The last lies beyond one turn of the wheel (1024 slots), the first in the past.
    std::vector<clock_type::duration> const after{-5ms, 0ms, 1ms, 3ms, 50ms, 100ms, 1000ms, 2100ms};
    std::vector<alarm_clock> all(after.size());
    std::vector<std::size_t> rang;
    for (std::size_t i = 0; i < all.size(); ++i) {
        all[i].rings = [&, i](clock_type::time_point now) {
            CHECK(now >= start + after[i]);
            CHECK(clock_type::now() >= start + after[i]);
            rang.push_back(i);
            if (rang.size() == all.size()) {
                w.stop();
            }
        };
        w.schedule(all[i], start + after[i]);
    }
    run(context);
    REQUIRE(rang.size() == all.size());
    // Those of one slot come in any order.
    CHECK(rang[4] == 4);
    CHECK(rang[5] == 5);
    CHECK(rang[6] == 6);
    CHECK(rang[7] == 7);
}

TEST_CASE("a wheel's entry may be moved, cancelled and destroyed, and then does not ring") {
    asio::io_context context{1};
    wheel w{context, 2ms};
    w.start();
    auto const start = clock_type::now();
    auto rang = 0;
    alarm_clock moved;
    moved.rings = [&](clock_type::time_point now) {
        CHECK(now >= start + 40ms);
        ++rang;
    };
    w.schedule(moved, start + 10ms);
    w.schedule(moved, start + 40ms);
    alarm_clock cancelled;
    cancelled.rings = [&](clock_type::time_point) {
        rang += 100;
    };
    w.schedule(cancelled, start + 10ms);
    w.cancel(cancelled);
    {
        alarm_clock gone;
        gone.rings = cancelled.rings;
        w.schedule(gone, start + 10ms);
    }
    alarm_clock last;
    last.rings = [&](clock_type::time_point) {
        w.stop();
    };
    w.schedule(last, start + 60ms);
    run(context);
    CHECK(rang == 1);
}

TEST_CASE(
    "what rings may schedule itself again, and destroy itself and its neighbours in the slot") {
    asio::io_context context{1};
    wheel w{context, 2ms};
    w.start();
    auto const start = clock_type::now();
    auto again = 0;
    alarm_clock repeating;
    repeating.rings = [&](clock_type::time_point now) {
        if (++again < 5) {
            w.schedule(repeating, now); // into the slot that is being fired
        } else {
            w.stop();
        }
    };
    w.schedule(repeating, start + 10ms);

    // Each destroys all of them; whichever is first.
    std::vector<std::unique_ptr<alarm_clock>> fellows;
    auto rang = 0;
    for (int i = 0; i < 3; ++i) {
        fellows.push_back(std::make_unique<alarm_clock>());
        fellows.back()->rings = [&](clock_type::time_point) {
            ++rang;
            // The one that rings is destroyed under its own feet, and must not be used afterwards.
            auto const all = std::exchange(fellows, {});
        };
        w.schedule(*fellows.back(), start + 10ms);
    }
    run(context);
    CHECK(again == 5);
    CHECK(rang == 1);
}

TEST_CASE("what throws at its deadline stops nobody else's time") {
    asio::io_context context{1};
    wheel w{context, 2ms};
    w.start();
    auto const start = clock_type::now();
    std::vector<alarm_clock> throwing(2);
    for (auto& one : throwing) {
        one.rings = [](clock_type::time_point) {
            throw std::runtime_error{"no"};
        };
        w.schedule(one, start + 10ms);
    }
    alarm_clock last;
    auto rang = false;
    last.rings = [&](clock_type::time_point) {
        rang = true;
        w.stop();
    };
    w.schedule(last, start + 20ms);
    run(context);
    CHECK(rang);
}

TEST_CASE("a wheel sleeps until a deadline comes, and is woken for a nearer one") {
    asio::io_context context{1};
    wheel w{context, 500ms};
    auto const start = clock_type::now();
    std::vector<alarm_clock> all(2);
    std::vector<clock_type::time_point> rang(2);
    for (std::size_t i = 0; i < all.size(); ++i) {
        all[i].rings = [&, i](clock_type::time_point now) {
            rang[i] = now;
            if (i == 0) {
                w.stop();
            }
        };
    }
    w.schedule(all[0], start + 3s);
    w.start();
    w.schedule(all[1], start + 1ms);
    // The first wait, which the nearer deadline ended, both deadlines, and a look in between; not
    // all of eight slots.
    CHECK(context.run_for(20s) <= 4);
    CHECK(rang[0] >= start + 3s);
    CHECK(rang[1] >= start + 1ms);
    CHECK(rang[1] < start + 2400ms);
}

TEST_CASE("a wheel notices that its thread was away") {
    asio::io_context context{1};
    wheel w{context, 1ms};
    w.start();
    CHECK(w.now().thawed_at == clock_type::time_point{});
    alarm_clock sleeper;
    auto const start = clock_type::now();
    sleeper.rings = [&](clock_type::time_point) {
        // Holds the thread for longer than 40 granularities, as a stop of the process would.
        while (clock_type::now() < start + 200ms) {
        }
    };
    w.schedule(sleeper, start + 10ms);
    alarm_clock last;
    last.rings = [&](clock_type::time_point) {
        CHECK(w.now().thawed_at >= start + 200ms);
        w.stop();
    };
    w.schedule(last, start + 250ms);
    run(context);
    CHECK(w.now().thawed_at >= start + 200ms);
}
