// A value or the reason why there is none, for outcomes that depend on what a client sent.
#pragma once

#include <cassert>
#include <utility>
#include <variant>

namespace presenced::protocol {

// T and Error differ, so that a plain `return` says which one it is.
// value() of an error and error() of a value are bugs: asserted.
template <class T, class Error>
class [[nodiscard]] result {
public:
    result(T value)
        : state_(std::in_place_index<0>, std::move(value)) {}
    result(Error error)
        : state_(std::in_place_index<1>, error) {}

    bool has_value() const noexcept { return state_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    T& value() & noexcept {
        assert(has_value());
        return *std::get_if<0>(&state_);
    }
    T const& value() const& noexcept {
        assert(has_value());
        return *std::get_if<0>(&state_);
    }
    T&& value() && noexcept { return std::move(value()); }

    T& operator*() & noexcept { return value(); }
    T const& operator*() const& noexcept { return value(); }
    T&& operator*() && noexcept { return std::move(value()); }
    T* operator->() noexcept { return &value(); }
    T const* operator->() const noexcept { return &value(); }

    Error error() const noexcept {
        assert(!has_value());
        return *std::get_if<1>(&state_);
    }

private:
    std::variant<T, Error> state_;
};

} // namespace presenced::protocol
