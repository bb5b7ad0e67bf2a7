#include "server/node/log.hpp"

#include "base/text.hpp"
#include "base/threads.hpp"
#include "protocol/codec.hpp"

#include <spdlog/async_logger.h>
#include <spdlog/details/null_mutex.h>
#include <spdlog/details/thread_pool.h>
#include <spdlog/formatter.h>
#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <exception>
#include <memory>
#include <mutex>

namespace presenced::server {

namespace {

using namespace std::chrono_literals;

// Lines that wait for whoever reads stderr: some seconds' worth on a bad day, 2 MiB.
constexpr std::size_t queue_limit = 4096;

std::string_view view(spdlog::string_view_t text) {
    return {text.data(), text.size()};
}

std::string_view name_of(spdlog::level::level_enum level) {
    switch (level) {
    case spdlog::level::trace:
    case spdlog::level::debug:
        return "debug";
    case spdlog::level::info:
        return "info";
    case spdlog::level::warn:
        return "warn";
    default:
        return "error";
    }
}

std::string show_time(spdlog::log_clock::time_point at) {
    auto const since = at.time_since_epoch();
    auto const seconds = std::chrono::floor<std::chrono::seconds>(since);
    auto const millis = std::chrono::floor<std::chrono::milliseconds>(since - seconds).count();
    auto const clock = static_cast<std::time_t>(seconds.count());
    std::tm utc{};
    gmtime_r(&clock, &utc);
    char text[64];
    auto const length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    std::snprintf(text + length, sizeof text - length, ".%03dZ", static_cast<int>(millis));
    return text;
}

// One entry is one line, whatever is in the message: its own lines become sentences of a kind.
std::string on_one_line(std::string_view message) {
    std::string line;
    for (auto end = message.find('\n'); end != message.npos; end = message.find('\n')) {
        line.append(base::printable(message.substr(0, end))).append("; ");
        message.remove_prefix(end + 1);
    }
    return line + base::printable(message);
}

class line_formatter final : public spdlog::formatter {
public:
    explicit line_formatter(log_format format)
        : format_(format) {}

    void format(spdlog::details::log_msg const& entry, spdlog::memory_buf_t& into) override {
        std::string line;
        if (format_ == log_format::json) {
            line = R"({"time":")" + show_time(entry.time) + R"(","level":")";
            line.append(name_of(entry.level)).append(R"(","message":)");
            std::string message;
            protocol::append_json_string(message, view(entry.payload));
            line += base::printable(message); // its escapes are JSON's
            line += '}';
        } else {
            line = show_time(entry.time) + ' ';
            line.append(name_of(entry.level)).append(" ");
            line.append(on_one_line(view(entry.payload)));
        }
        line += '\n';
        into.append(line.data(), line.data() + line.size());
    }

    std::unique_ptr<spdlog::formatter> clone() const override {
        return std::make_unique<line_formatter>(format_);
    }

private:
    log_format format_;
};

spdlog::level::level_enum to_spdlog(log_level level) {
    switch (level) {
    case log_level::debug:
        return spdlog::level::debug;
    case log_level::info:
        return spdlog::level::info;
    case log_level::warn:
        return spdlog::level::warn;
    case log_level::error:
        break;
    }
    return spdlog::level::err;
}

// Blocks as long as stderr does, without stdio, whose locks the end of the process would wait for.
void write_to_stderr(char const* data, std::size_t size) {
    while (size > 0) {
        auto const n = ::write(STDERR_FILENO, data, size);
        if (n >= 0) {
            data += n;
            size -= static_cast<std::size_t>(n);
        } else if (errno == EAGAIN) {
            pollfd writable{STDERR_FILENO, POLLOUT, 0};
            ::poll(&writable, 1, -1);
        } else if (errno != EINTR) {
            return; // nobody is left to tell
        }
    }
}

// Used by the pool's one thread, but for await_flush().
class stderr_sink final : public spdlog::sinks::base_sink<spdlog::details::null_mutex> {
public:
    explicit stderr_sink(std::weak_ptr<spdlog::details::thread_pool> pool)
        : pool_{std::move(pool)} {}

    // Since the last call.
    bool await_flush(std::chrono::milliseconds limit) {
        std::unique_lock lock{mutex_};
        auto const done = changed_.wait_for(lock, limit, [this] { return flushed_; });
        flushed_ = false;
        return done;
    }

private:
    void sink_it_(spdlog::details::log_msg const& entry) override {
        // Told where the gap is: before the first line that made it.
        if (auto const pool = pool_.lock()) {
            if (auto const dropped = pool->overrun_counter(); dropped != told_) {
                write(spdlog::details::log_msg{
                    entry.logger_name, spdlog::level::warn,
                    fmt::format("log lines dropped count={}", dropped - told_)});
                told_ = dropped;
            }
        }
        write(entry);
    }

    void write(spdlog::details::log_msg const& entry) {
        spdlog::memory_buf_t line;
        formatter_->format(entry, line);
        write_to_stderr(line.data(), line.size());
    }

    void flush_() override {
        std::lock_guard const lock{mutex_};
        flushed_ = true;
        changed_.notify_all();
    }

    std::weak_ptr<spdlog::details::thread_pool> pool_;
    std::size_t told_ = 0;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool flushed_ = false;
};

// Never destroyed: its thread may hang in a write when the process ends, and nobody waits for it.
struct log_writer {
    std::shared_ptr<spdlog::details::thread_pool> pool =
        std::make_shared<spdlog::details::thread_pool>(queue_limit, 1);
    std::shared_ptr<stderr_sink> sink = std::make_shared<stderr_sink>(pool);
};
log_writer* writer = nullptr;
std::terminate_handler die = nullptr;

} // namespace

void set_up_log(log_settings const& settings) {
    try {
        writer = new log_writer;
    } catch (std::system_error const& e) {
        base::throw_thread_error("the log", e);
    }
    auto logger = std::make_shared<spdlog::async_logger>(
        "presenced", writer->sink, writer->pool, spdlog::async_overflow_policy::overrun_oldest);
    logger->set_formatter(std::make_unique<line_formatter>(settings.format));
    logger->set_level(to_spdlog(settings.level));
    spdlog::set_default_logger(std::move(logger));
    // What led to a bug's end is worth a moment.
    die = std::set_terminate([] {
        flush_log(1s);
        die();
    });
}

bool flush_log(std::chrono::milliseconds limit) {
    spdlog::default_logger()->flush();
    return writer == nullptr || writer->sink->await_flush(limit);
}

std::uint64_t dropped_log_lines() {
    return writer == nullptr ? 0 : writer->pool->overrun_counter();
}

std::string log_value(std::string_view text) {
    auto const plain = [](char c) {
        return c > ' ' && c < 0x7f && c != '"' && c != '=';
    };
    if (!text.empty() && std::all_of(text.begin(), text.end(), plain)) {
        return std::string{text};
    }
    std::string quoted;
    protocol::append_json_string(quoted, text);
    return quoted;
}

} // namespace presenced::server
