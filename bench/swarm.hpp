// Tens of thousands of Action Cable sessions on one thread, for the load driver.
//
// Not clients::cable_client, which the tests use: that one is Beast, as is the server, and on a
// machine that the two share, a client as dear as the server would measure itself. This one speaks
// just enough of RFC 6455 over epoll: one request, short unfragmented text frames, pongs. Frames
// are masked with zero: a mask is for proxies that mistake frames for requests, and there are none.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::bench {

using steady = std::chrono::steady_clock;

struct target {
    std::string host; // an IPv4 address
    std::uint16_t port;
    std::string path;

    // "ws://127.0.0.1:8080/cable". Throws std::invalid_argument.
    static target parse(std::string const& url);
};

// Whom a session is: its access token, and the agent that it subscribes to.
struct identity {
    std::string token;
    std::string agent;
};

enum class phase : std::uint8_t {
    idle,      // not started, or over
    upgrading, // connecting, or its request is unanswered
    opened,    // upgraded, not confirmed
    confirmed,
    left,   // unsubscribed, still connected
    failed, // refused, rejected, closed by the server, or too late
};

struct swarm_limits {
    // Sessions between connect() and the answer to their request at a time. Loopback drops a SYN
    // when the server's backlog is full, and repeats it a second later: that would measure the
    // kernel.
    std::size_t upgrading = 1000;
    std::chrono::seconds session{60}; // from connect() to the confirmation
};

class swarm {
public:
    struct counts {
        std::size_t upgrading = 0;      // now
        std::size_t confirmed = 0;      // now
        std::size_t failed = 0;         // ever
        std::uint64_t pings = 0;        // JSON pings received
        std::uint64_t native_pings = 0; // WebSocket pings received, each answered
    };

    // Sessions 0 .. size-1; session i is identities[i % identities.size()].
    swarm(target to, std::vector<identity> identities, std::size_t size, swarm_limits limits = {});
    ~swarm();
    swarm(swarm const&) = delete;
    swarm& operator=(swarm const&) = delete;

    std::size_t size() const { return sessions_.size(); }
    counts const& now() const { return counts_; }
    phase phase_of(std::size_t i) const { return sessions_[i].at; }

    // Connects and subscribes as soon as the limit allows.
    void start(std::size_t i);
    // Sends an unsubscribe, of a confirmed session.
    void unsubscribe(std::size_t i);
    // A close frame; over once the server has closed, too.
    void close(std::size_t i);
    // Without a word: a reset.
    void kill(std::size_t i);

    // Handles what comes in until `done` holds or the time has come; false: it had come.
    bool run(std::function<bool()> const& done, steady::time_point until);

    // From connect() to the confirmation, in the order of confirmations.
    std::vector<double> const& milliseconds() const { return milliseconds_; }
    // When the confirmations came.
    std::vector<steady::time_point> const& confirmed_at() const { return confirmed_at_; }
    void forget_times();
    // Why sessions failed, each with its number: for the report.
    std::vector<std::pair<std::string, std::size_t>> const& failures() const { return failures_; }

private:
    struct session {
        int fd = -1;
        phase at = phase::idle;
        bool requested = false; // the HTTP request is out
        bool upgraded = false;
        bool closing = false;
        steady::time_point since{};
        std::string rest; // an incomplete frame or response
    };

    void connect(std::size_t i);
    void start_queued();
    void on_ready(std::size_t i, std::uint32_t events);
    void on_bytes(std::size_t i, std::string_view bytes);
    // Return how much of it they understood.
    std::size_t on_response(std::size_t i, std::string_view bytes);
    std::size_t on_frame(std::size_t i, std::string_view bytes);
    void on_text(std::size_t i, std::string_view text);
    void send_frame(std::size_t i, unsigned opcode, std::string_view payload);
    void send(std::size_t i, std::string_view bytes);
    void move(session& s, phase to);
    void fail(std::size_t i, std::string_view why);
    void end(session& s);
    void expire(steady::time_point now);

    target to_;
    std::vector<identity> identities_;
    swarm_limits limits_;
    int epoll_ = -1;
    std::vector<session> sessions_;
    std::vector<std::size_t> queued_; // first_queued_ and up
    std::size_t first_queued_ = 0;
    bool starting_ = false;
    counts counts_;
    std::vector<double> milliseconds_;
    std::vector<steady::time_point> confirmed_at_;
    std::vector<std::pair<std::string, std::size_t>> failures_;
    steady::time_point next_expiry_{};
    std::string scratch_;
};

} // namespace presenced::bench
