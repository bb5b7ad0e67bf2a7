// Objects by a key that is never reused: an answer that comes late for something that is gone finds
// nothing, instead of its successor. Looking up is an index and a comparison.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace presenced::server {

template <class T>
class slot_table {
public:
    using key_type = std::uint64_t; // generation in the upper half, index in the lower

    // Takes the object in and returns its key, which is never 0.
    key_type insert(std::unique_ptr<T> object) {
        std::uint32_t index = 0;
        if (free_ != none) {
            index = free_;
            free_ = slots_[index].next_free;
        } else {
            index = static_cast<std::uint32_t>(slots_.size());
            slots_.emplace_back();
        }
        slots_[index].object = std::move(object);
        ++size_;
        return static_cast<key_type>(slots_[index].generation) << 32 | index;
    }

    // Null when there is none any more.
    T* find(key_type key) const {
        auto const index = static_cast<std::uint32_t>(key);
        if (index >= slots_.size() || slots_[index].generation != key >> 32) {
            return nullptr;
        }
        return slots_[index].object.get();
    }

    // Takes the object out; null when there is none.
    std::unique_ptr<T> remove(key_type key) {
        if (find(key) == nullptr) {
            return nullptr;
        }
        auto const index = static_cast<std::uint32_t>(key);
        auto& s = slots_[index];
        ++s.generation;
        s.next_free = free_;
        free_ = index;
        --size_;
        return std::exchange(s.object, nullptr);
    }

    std::size_t size() const { return size_; }

    // Calls f(T&) for each; f may remove objects and insert others, which may be passed over.
    template <class F>
    void for_each(F f) {
        for (std::size_t i = 0; i < slots_.size(); ++i) {
            if (auto* object = slots_[i].object.get()) {
                f(*object);
            }
        }
    }

private:
    static constexpr auto none = std::numeric_limits<std::uint32_t>::max();
    struct slot {
        std::unique_ptr<T> object;
        std::uint32_t generation = 1;
        std::uint32_t next_free = none;
    };
    std::vector<slot> slots_;
    std::uint32_t free_ = none;
    std::size_t size_ = 0;
};

} // namespace presenced::server
