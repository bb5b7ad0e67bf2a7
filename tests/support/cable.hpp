// One Action Cable client for tests, synchronous: it is told what to do and asked what it heard.
#pragma once

#include "clients/cpp/cable_client.hpp"
#include "tests/support/eventually.hpp"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>

#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace presenced::tests {

// The thread on which clients live.
class cable_loop {
public:
    cable_loop();
    ~cable_loop();

    boost::asio::io_context& context() { return context_; }

    // Runs it on that thread and waits until it is done.
    template <class Job>
    void run(Job job) {
        std::promise<void> done;
        boost::asio::post(context_, [&] {
            job();
            done.set_value();
        });
        done.get_future().wait();
    }

private:
    boost::asio::io_context context_{1};
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
    std::thread thread_;
};

// Thread-safe.
class cable final : private clients::cable_client_handler {
public:
    struct ping {
        steady::time_point at;
        std::string text; // as it came
    };

    // Connects at once.
    cable(cable_loop& loop, clients::cable_client_options options);
    // Kills the connection, if it is still there.
    ~cable();

    // What it heard next besides pings, as a sentence:
    //   opened [SUBPROTOCOL]   refused STATUS   welcome   confirm IDENTIFIER   reject IDENTIFIER
    //   disconnect REASON reconnect:BOOL   message TEXT   closed CODE   nothing (within `limit`)
    std::string next(milliseconds limit = patience);
    // Everything that came before the connection's end, the end included.
    std::vector<std::string> rest(milliseconds limit = patience);

    void subscribe(std::string identifier);
    void unsubscribe(std::string identifier);
    void send_text(std::string text);
    void send_binary(std::string bytes);
    void close();
    void kill();
    void stop_reading();
    void resume_reading();

    std::vector<ping> pings() const;
    std::uint64_t native_pings() const;
    // Text frames as they came, pings left out.
    std::vector<std::string> frames() const;
    // Of a refusal.
    clients::header_list refusal_headers() const;

private:
    void on_open(std::string_view subprotocol) override;
    void on_refused(unsigned status, clients::header_list const& headers) override;
    void on_text(std::string_view text) override;
    void on_closed(std::uint16_t code, boost::system::error_code error) override;
    void heard(std::string event);

    cable_loop& loop_;
    std::unique_ptr<clients::cable_client> client_; // the loop's thread only
    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::string> events_;
    std::vector<std::string> frames_;
    std::vector<ping> pings_;
    clients::header_list refusal_headers_;
};

} // namespace presenced::tests
