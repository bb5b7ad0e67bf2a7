#include "tests/support/cable.hpp"

#include <nlohmann/json.hpp>

namespace presenced::tests {

namespace {

// Not with the server's own decoder: a mistake would cancel itself out.
std::string describe(std::string_view text) {
    auto const json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_object()) {
        return "no JSON object: " + std::string{text};
    }
    auto const type = json.value("type", "");
    if (type == "welcome" && json.size() == 1) {
        return "welcome";
    }
    if (type == "confirm_subscription" && json.size() == 2) {
        return "confirm " + json.at("identifier").get<std::string>();
    }
    if (type == "reject_subscription" && json.size() == 2) {
        return "reject " + json.at("identifier").get<std::string>();
    }
    if (type == "disconnect" && json.size() == 3) {
        return "disconnect " + json.at("reason").get<std::string>() +
               " reconnect:" + (json.at("reconnect").get<bool>() ? "true" : "false");
    }
    return "message " + std::string{text};
}

} // namespace

cable_loop::cable_loop()
    : work_{context_.get_executor()}
    , thread_{[this] {
        context_.run();
    }} {}

cable_loop::~cable_loop() {
    context_.stop();
    thread_.join();
}

cable::cable(cable_loop& loop, clients::cable_client_options options)
    : loop_{loop} {
    loop_.run([&] {
        clients::cable_client_handler& handler = *this;
        client_ =
            std::make_unique<clients::cable_client>(loop_.context(), std::move(options), handler);
        client_->start();
    });
}

cable::~cable() {
    loop_.run([&] { client_.reset(); });
}

std::string cable::next(milliseconds limit) {
    std::unique_lock lock{mutex_};
    if (!changed_.wait_for(lock, limit, [this] { return !events_.empty(); })) {
        return "nothing";
    }
    auto event = std::move(events_.front());
    events_.pop_front();
    return event;
}

std::vector<std::string> cable::rest(milliseconds limit) {
    auto const deadline = steady::now() + limit;
    std::vector<std::string> all;
    do {
        all.push_back(next(std::chrono::ceil<milliseconds>(deadline - steady::now())));
    } while (all.back() != "nothing" && !all.back().starts_with("closed") &&
             !all.back().starts_with("refused"));
    return all;
}

void cable::subscribe(std::string identifier) {
    loop_.run([&] { client_->subscribe(std::move(identifier)); });
}

void cable::unsubscribe(std::string identifier) {
    loop_.run([&] { client_->unsubscribe(std::move(identifier)); });
}

void cable::send_text(std::string text) {
    loop_.run([&] { client_->send_text(std::move(text)); });
}

void cable::send_binary(std::string bytes) {
    loop_.run([&] { client_->send_binary(std::move(bytes)); });
}

void cable::close() {
    loop_.run([&] { client_->close(); });
}

void cable::kill() {
    loop_.run([&] { client_->kill(); });
}

void cable::stop_reading() {
    loop_.run([&] { client_->stop_reading(); });
}

void cable::resume_reading() {
    loop_.run([&] { client_->resume_reading(); });
}

std::vector<cable::ping> cable::pings() const {
    std::lock_guard const lock{mutex_};
    return pings_;
}

std::uint64_t cable::native_pings() const {
    std::uint64_t count = 0;
    loop_.run([&] { count = client_->native_pings(); });
    return count;
}

std::vector<std::string> cable::frames() const {
    std::lock_guard const lock{mutex_};
    return frames_;
}

clients::header_list cable::refusal_headers() const {
    std::lock_guard const lock{mutex_};
    return refusal_headers_;
}

void cable::on_open(std::string_view subprotocol) {
    heard(subprotocol.empty() ? "opened" : "opened " + std::string{subprotocol});
}

void cable::on_refused(unsigned status, clients::header_list const& headers) {
    {
        std::lock_guard const lock{mutex_};
        refusal_headers_ = headers;
    }
    heard("refused " + std::to_string(status));
}

void cable::on_text(std::string_view text) {
    if (text.starts_with(R"({"type":"ping")")) {
        std::lock_guard const lock{mutex_};
        pings_.push_back({steady::now(), std::string{text}});
        return;
    }
    {
        std::lock_guard const lock{mutex_};
        frames_.emplace_back(text);
    }
    heard(describe(text));
}

void cable::on_closed(std::uint16_t code, boost::system::error_code) {
    heard("closed " + std::to_string(code));
}

void cable::heard(std::string event) {
    {
        std::lock_guard const lock{mutex_};
        events_.push_back(std::move(event));
    }
    changed_.notify_all();
}

} // namespace presenced::tests
