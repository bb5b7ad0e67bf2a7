#include "server/cable/cable_output.hpp"

#include <utility>

namespace presenced::server {

cable_output::outcome cable_output::send(frame const& f, bool with_native_ping) {
    if (in_flight_ == nullptr && outbox_.empty()) {
        return hand_over(f, with_native_ping) ? outcome::taken : outcome::queued;
    }
    if (with_native_ping) {
        socket_->ping(); // it does not wait for what is queued
    }
    return outbox_.push(f) ? outcome::queued : outcome::full;
}

cable_output::outcome cable_output::send_ping(frame const& f, bool with_native_ping) {
    auto const what = send(f, with_native_ping);
    if (what == outcome::queued) {
        unsent_ping_ = f.get();
    }
    return what;
}

void cable_output::say_last(frame const& f) {
    outbox_ = {};
    outbox_.push_last(f);
    closes_ = true;
    flush();
}

void cable_output::on_sent() {
    if (in_flight_ == unsent_ping_) {
        unsent_ping_ = nullptr;
    }
    in_flight_ = nullptr;
    flush();
}

bool cable_output::hand_over(frame const& f, bool with_native_ping) {
    if (socket_->send(f, with_native_ping)) {
        return true;
    }
    in_flight_ = f.get();
    return false;
}

void cable_output::flush() {
    while (in_flight_ == nullptr && !outbox_.empty()) {
        if (hand_over(outbox_.front(), false) && outbox_.front().get() == unsent_ping_) {
            unsent_ping_ = nullptr;
        }
        outbox_.pop();
    }
    if (in_flight_ == nullptr && closes_) {
        socket_->close();
    }
}

} // namespace presenced::server
