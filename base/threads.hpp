// Starts threads, and says what to do where the system does not allow another one.
#pragma once

#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace presenced::base {

// What std::thread's constructor has thrown, as a line that names the limit and the cure; any other
// error in its own words.
std::string explain_thread_error(std::system_error const& e);

// Throws std::runtime_error with that line. `what` names the thread: "a shard".
[[noreturn]] void throw_thread_error(std::string_view what, std::system_error const& e);

template <class F>
std::thread start_thread(std::string_view what, F&& f) {
    try {
        return std::thread{std::forward<F>(f)};
    } catch (std::system_error const& e) {
        throw_thread_error(what, e);
    }
}

} // namespace presenced::base
