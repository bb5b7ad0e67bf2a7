#include "server/log.hpp"

#include "protocol/codec.hpp"

#include <spdlog/formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <memory>

namespace presenced::server {

namespace {

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

// One entry is one line, whatever is in the message.
void append_one_line(std::string& line, std::string_view message) {
    for (auto const c : message) {
        auto const control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
        line += control ? ' ' : c;
    }
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
            protocol::append_json_string(line, view(entry.payload));
            line += '}';
        } else {
            line = show_time(entry.time) + ' ';
            line.append(name_of(entry.level)).append(" ");
            append_one_line(line, view(entry.payload));
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

} // namespace

void set_up_log(log_settings const& settings) {
    auto logger = std::make_shared<spdlog::logger>(
        "presenced", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    logger->set_formatter(std::make_unique<line_formatter>(settings.format));
    logger->set_level(to_spdlog(settings.level));
    spdlog::set_default_logger(std::move(logger));
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
