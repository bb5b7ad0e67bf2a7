// Slow and hostile clients, one attack after another on one node, and what its well-behaved
// neighbours notice of them. Prints a line for each:
//
//   attack | client got | RSS growth | neighbour's longest ping gap | subscribe p99 |
//   the node's work in it | disconnects
//
// Here in small, so that it shows that each attack ends as it should; script/hostile runs it at
// full strength on the release binary, and then the figures are judged, too.
#include "tests/e2e/flood.hpp"
#include "tests/e2e/neighbours.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/raw_http.hpp"
#include "tests/support/scale.hpp"
#include "tests/support/swarm.hpp"
#include "tests/support/world.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include <sys/resource.h>

using namespace presenced::tests;

namespace {

bool is_full() {
    return scale("PRESENCED_HOSTILE_FULL", 0) != 0;
}

// As many as the attack has at full strength, or a tenth.
std::size_t many(std::size_t count) {
    return is_full() ? count : std::max<std::size_t>(count / 10, 1);
}

std::string times(std::size_t count, std::string_view what) {
    return std::to_string(count) + " " + std::string{what};
}

double limited(node const& n, std::string const& by) {
    return n.metric("presenced_limits_hit_total{limit=\"" + by + "\"}");
}

// A node with well-behaved neighbours. Each attack has its own.
struct target {
    world w{is_full() ? timings(1, 1) : a_tenth()};
    std::unique_ptr<node> n = start(w);
    neighbours all{w, *n, is_full()};

    static std::unique_ptr<node> start(world const& w) {
        raise_descriptor_limit(); // the node inherits it
        return w.start_node({{"PRESENCED_LOG_LEVEL", "info"}});
    }

    // Runs an attack, prints its line, and sees to it that the node still serves.
    template <class Attack>
    void watch(std::string const& name, Attack attack) {
        static std::once_flag once;
        std::call_once(once, [] {
            std::printf("attack | client got | RSS growth | neighbour's longest ping gap | "
                        "subscribe p99 | the node's work in it | disconnects\n");
        });
        all.watch(name, attack);
        CHECK(n->get("/readyz").status == 200);
    }
};

milliseconds while_flooding() {
    return is_full() ? 10s : 1s;
}

// Forty at full strength send `one` over and over, `count` at a time. A sanitizer may be slower
// than the limits, so that nobody needs to be slowed down; the release is not.
void flooded(std::string const& name, std::string const& one, std::size_t count) {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch(name, [&] {
        auto const before = limited(*n, "input");
        auto const start = steady::now();
        flood attack{w, *n, many(40), repeated(one, count)};
        attack.run(while_flooding());
        // 10,000 frames or 2 MiB a second, and what buffers hold: 64 KiB and 64 KiB, which the
        // kernel doubles, and a message.
        auto const share = std::min(10'000 * static_cast<double>(one.size()), 2.0 * (1 << 20));
        auto const seconds = std::chrono::duration<double>(since(start)).count();
        CHECK(attack.most_sent() <= share * (seconds + 0.1) + 5 * 64 * 1024);
        auto const answered = attack.answered();
        CHECK(answered == attack.size());
        if (is_full() && limited(*n, "input") == before) {
            // Forty may get less of a slow machine than their share; one alone, once the node
            // is through with theirs, does not.
            flood lone{w, *n, 1, repeated(one, count)};
            lone.run(while_flooding());
        }
        CHECK((limited(*n, "input") > before || !is_full()));
        return times(answered, "slowed down, answered");
    });
}

// From so many threads as many bad tokens as they manage, each answered before the next is sent.
// Returns how many were unauthorized and how many got 429.
template <class TokenOf>
std::pair<std::size_t, std::size_t> bad_tokens(node const& n, TokenOf token_of) {
    std::atomic<std::size_t> answers[3] = {};
    std::vector<std::thread> threads;
    auto const end = steady::now() + while_flooding();
    for (std::size_t t = 0; t < many(40); ++t) {
        threads.emplace_back([&, t] {
            auto const from = "127.0.1." + std::to_string(t + 1);
            for (std::size_t i = 0; steady::now() < end; ++i) {
                auto const status =
                    try_upgrade(n.port(), "/cable?token=" + token_of(t, i), {}, from.c_str())
                        .status;
                ++answers[status == 101 ? 0 : status == 429 ? 1 : 2];
            }
        });
    }
    for (auto& t : threads) {
        t.join();
    }
    CHECK(answers[2] == 0);
    return std::pair<std::size_t, std::size_t>{answers[0], answers[1]};
}

} // namespace

TEST_CASE("floods of commands hurt no neighbour") {
    flooded("floods of commands", framed("unsubscribe", "none"), 500);
}

TEST_CASE("floods of 64 KiB messages hurt no neighbour") {
    flooded("floods of 64 KiB messages", client_frame(1, std::string(64 * 1024, ' ')), 8);
}

TEST_CASE("floods of pings hurt no neighbour") {
    flooded("floods of pings", client_frame(9, ""), 1000);
}

// These count by their bytes.
TEST_CASE("floods of fragments without end hurt no neighbour") {
    flooded("floods of fragments without end",
            client_frame(1, "{", false) + repeated(client_frame(0, "", false), 1000) +
                client_frame(0, "}"),
            1);
}

TEST_CASE("frames of deep JSON are ignored, and hurt no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("deep JSON", [&] {
        auto const deep = [&] {
            return n->metric("presenced_bad_frames_total{cause=\"too_deep\"}");
        };
        auto const before = deep();
        flood attack{w, *n, many(10), repeated(client_frame(1, std::string(60'000, '[')), 2)};
        attack.run(while_flooding() / 2);
        auto const answered = attack.answered();
        CHECK(answered == attack.size());
        CHECK(deep() > before);
        return times(answered, "ignored, answered");
    });
}

TEST_CASE("slow readers are disconnected, and hurt no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("slow readers", [&] {
        auto const too_slow = [&] {
            return n->metric("presenced_disconnects_total{reason=\"too_slow\"}");
        };
        auto const before = too_slow();
        flood attack{w, *n, many(200), framed("subscribe", std::string(4'000, 'x'))};
        auto const expected = before + static_cast<double>(attack.size());
        auto const end = steady::now() + (is_full() ? 30s : 3s) + 40s;
        while (too_slow() < expected && steady::now() < end) {
            attack.run(100ms, false);
        }
        CHECK(too_slow() == expected);
        return times(attack.size(), "too_slow");
    });
}

TEST_CASE(
    "a session that asks for thousands of subscriptions gets a hundred, and hurts no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("thousands of subscriptions", [&] {
        auto const agent = w.add_agent();
        auto const greedy = w.session(*n);
        auto const count = many(10'000);
        for (std::size_t i = 0; i < count; ++i) {
            greedy->subscribe(identifier(agent, std::to_string(i)));
        }
        std::size_t confirmed = 0;
        std::size_t rejected = 0;
        while (confirmed + rejected < count) {
            auto const heard = greedy->next();
            if (heard.starts_with("confirm")) {
                ++confirmed;
            } else if (heard.starts_with("reject")) {
                ++rejected;
            } else {
                FAIL(heard);
            }
        }
        CHECK(confirmed == 100);
        greedy->kill();
        CHECK(w.becomes_active(agent, false));
        return times(confirmed, "confirmed, ") + times(rejected, "rejected");
    });
}

TEST_CASE(
    "clients that subscribe and unsubscribe without end are slowed down, and hurt no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("subscribe and unsubscribe without end", [&] {
        auto const agent = w.add_agent();
        auto const before = limited(*n, "subscribes");
        std::string churn;
        for (int i = 0; i < 50; ++i) {
            auto const id = identifier(agent, std::to_string(i));
            churn += framed("subscribe", id) + framed("unsubscribe", id);
        }
        flood attack{w, *n, many(20), churn};
        auto const start = steady::now();
        attack.run(while_flooding());
        while (limited(*n, "subscribes") == before && since(start) < while_flooding() + 20s) {
            attack.run(100ms);
        }
        auto const answered = attack.answered();
        CHECK(answered == attack.size());
        CHECK(limited(*n, "subscribes") > before);
        return times(answered, "slowed down, answered");
    });
}

TEST_CASE("idle connections and slow headers get 408, and hurt no neighbour") {
    target attacked;
    auto& n = attacked.n;
    attacked.watch("idle connections and slow headers", [&] {
        std::deque<raw_connection> open;
        auto const before = limited(*n, "request_timeout");
        for (std::size_t i = 0; i < many(2'000); ++i) {
            open.emplace_back(n->port());
            if (i % 2 == 0) {
                open.back().send("GET /cable HTTP/1.1\r\n");
            }
        }
        auto const start = steady::now();
        while (limited(*n, "request_timeout") == before && since(start) < 20s) {
            for (std::size_t i = 0; i < open.size(); i += 2) {
                open[i].send_some("X: y\r\n");
            }
            std::this_thread::sleep_for(250ms); // how slowly the headers come is the attack
        }
        std::size_t timed_out = 0;
        for (auto& one : open) {
            auto const answer = one.answer();
            timed_out += answer && answer->status == 408 ? 1U : 0U;
        }
        CHECK(timed_out == open.size());
        return times(timed_out, "408");
    });
}

TEST_CASE("huge headers get 431, and hurt no neighbour") {
    target attacked;
    auto& n = attacked.n;
    attacked.watch("huge headers", [&] {
        std::string const head =
            "GET /cable HTTP/1.1\r\nHost: x\r\nX-Long: " + std::string(1 << 20, 'x');
        std::size_t refused = 0;
        auto const count = many(500);
        for (std::size_t i = 0; i < count; ++i) {
            raw_connection one{n->port()};
            std::string heard;
            for (std::string_view rest = head; !rest.empty() && heard.empty();) {
                rest.remove_prefix(one.send_some(rest).value_or(rest.size()));
                heard = one.read(1, 0ms);
            }
            heard += one.read_until("\r\n");
            refused += heard.find("431") != heard.npos ? 1U : 0U;
        }
        CHECK(refused == count);
        return times(refused, "431");
    });
}

TEST_CASE("the same bad token gets 429, and hurts no neighbour") {
    target attacked;
    auto& n = attacked.n;
    attacked.watch("the same bad token", [&] {
        auto const [turned_away, refused] =
            bad_tokens(*n, [](std::size_t, std::size_t) { return std::string{"bad"}; });
        CHECK(turned_away == 3);
        CHECK(refused > 0);
        return times(turned_away, "unauthorized, ") + times(refused, "429");
    });
}

TEST_CASE("many bad tokens keep out no good one, and hurt no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("many bad tokens", [&] {
        std::atomic<bool> done{false};
        std::atomic<std::size_t> good{0};
        std::thread guest{[&] {
            while (!done) {
                // A good one is looked up among them: never 503.
                good += try_upgrade(n->port(), "/cable?token=" + w.token()).status == 101 ? 1U : 0U;
                std::this_thread::sleep_for(50ms); // the guest's pace, who is no flood
            }
        }};
        auto const [turned_away, refused] = bad_tokens(*n, [](std::size_t t, std::size_t i) {
            return "bad-" + std::to_string(t) + "-" + std::to_string(i);
        });
        done = true;
        guest.join();
        CHECK(good > 0);
        CHECK(refused == 0);
        CHECK(n->metric("presenced_auth_failures_total{cause=\"unavailable\"}") == 0);
        return times(turned_away, "unauthorized; ") + times(good, "good ones let in");
    });
}

// Descriptors: what the node has, and a few more; then hundreds of connections ask for one.
TEST_CASE("a node that runs out of descriptors makes room, and hurts no neighbour") {
    target attacked;
    auto& w = attacked.w;
    auto& n = attacked.n;
    attacked.watch("descriptors used up", [&] {
        rlimit few{};
        prlimit(n->pid(), RLIMIT_NOFILE, nullptr, &few);
        auto const many_of_them = few;
        few.rlim_cur = 200;
        REQUIRE(prlimit(n->pid(), RLIMIT_NOFILE, &few, nullptr) == 0);
        std::deque<raw_connection> open;
        for (std::size_t i = 0; i < 600; ++i) {
            open.emplace_back(n->port());
            if (i % 2 == 0) {
                // Half of them ask, and stay.
                open.back().send("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
            }
        }
        // Whoever is slow to say what it wants may be closed for others, and comes again.
        auto const comes_in = [](auto ask) {
            return eventually([&] {
                try {
                    return ask();
                } catch (std::exception const&) {
                    return false;
                }
            });
        };
        CHECK(comes_in([&] { return n->get("/healthz").status == 200; }));
        CHECK(comes_in(
            [&] { return try_upgrade(n->port(), "/cable?token=" + w.token()).status == 101; }));
        CHECK(comes_in([&] { return limited(*n, "descriptors") > 0; }));
        auto const count = open.size();
        open.clear();
        REQUIRE(prlimit(n->pid(), RLIMIT_NOFILE, &many_of_them, nullptr) == 0);
        CHECK(n->get("/healthz").status == 200);
        return times(count, "waited for, or closed");
    });
}
