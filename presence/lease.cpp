#include "presence/lease.hpp"

#include <algorithm>

namespace presenced::presence {

action lease::on_acquired(duration heartbeat) {
    switch (state_) {
    case lease_state::acquiring:
        state_ = lease_state::live;
        due_ = renewed_at_ + heartbeat;
        return action::confirm;
    case lease_state::abandoning:
        state_ = lease_state::releasing;
        return action::release;
    default:
        return action::none;
    }
}

action lease::on_refused() {
    auto const was = state_;
    if (was == lease_state::acquiring || was == lease_state::abandoning) {
        state_ = lease_state::ended;
    }
    return was == lease_state::acquiring ? action::reject : action::none;
}

action lease::on_abandoned() {
    if (state_ == lease_state::abandoning || state_ == lease_state::acquiring) {
        state_ = lease_state::ended;
    }
    return action::none;
}

action lease::on_due(time_point now, time_point evidence, duration heartbeat) {
    if (state_ != lease_state::live || renewing_ || now < due_ || evidence <= renewed_at_) {
        return action::none;
    }
    renewing_ = true;
    renewed_at_ = now;
    due_ = now + heartbeat;
    return action::renew;
}

void lease::on_renewed() {
    renewing_ = false;
}

action lease::on_missing() {
    renewing_ = false;
    if (state_ != lease_state::live) {
        return action::none;
    }
    state_ = lease_state::lost;
    return action::tell;
}

void lease::on_database_back(time_point by) {
    if (state_ == lease_state::live) {
        due_ = std::min(due_, by);
    }
}

action lease::on_close(release_reason why) {
    cause_ = why;
    switch (state_) {
    case lease_state::acquiring:
        state_ = lease_state::abandoning;
        return action::abandon;
    case lease_state::live:
        state_ = lease_state::releasing;
        return action::release;
    default:
        return action::none;
    }
}

void lease::on_released() {
    if (state_ == lease_state::releasing) {
        state_ = lease_state::ended;
    }
}

} // namespace presenced::presence
