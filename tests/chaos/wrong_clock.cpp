// Preloaded into a node: its wall clock is wrong by as much as a file says, and everything else,
// timers above all, is right. (Debian's libfaketime moves timers of the steady clock, too: a node
// with it stands still.) The file is mapped, so that the clock can be set while the node runs.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <ctime>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

namespace {

std::int64_t seconds_wrong() {
    static auto const* const map = [] {
        auto const* const path = std::getenv("PRESENCED_TEST_CLOCK");
        auto const file = path != nullptr ? ::open(path, O_RDONLY | O_CLOEXEC) : -1;
        void* at = file < 0 ? MAP_FAILED
                            : ::mmap(nullptr, sizeof(std::int64_t), PROT_READ, MAP_SHARED, file, 0);
        ::close(file);
        return at == MAP_FAILED ? nullptr : static_cast<std::atomic<std::int64_t> const*>(at);
    }();
    return map != nullptr ? map->load(std::memory_order_relaxed) : 0;
}

} // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* at) noexcept {
    auto const result = static_cast<int>(::syscall(SYS_clock_gettime, clock, at));
    if (result == 0 && clock == CLOCK_REALTIME) {
        at->tv_sec += seconds_wrong();
    }
    return result;
}

extern "C" int gettimeofday(timeval* at, void*) noexcept {
    timespec now{};
    auto const result = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return result;
}

extern "C" std::time_t time(std::time_t* at) noexcept {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != nullptr) {
        *at = now.tv_sec;
    }
    return now.tv_sec;
}
