#include "tests/support/process.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace presenced::tests {

namespace {

[[noreturn]] void fail(char const* what) {
    throw std::system_error{errno, std::system_category(), what};
}

// Text in memory; unlike a pipe it never fills up.
int make_memory_file(char const* name) {
    auto const file = memfd_create(name, MFD_CLOEXEC);
    if (file < 0) {
        fail("memfd_create");
    }
    fcntl(file, F_SETFL, O_APPEND);
    return file;
}

std::string content_of(int file) {
    std::string text;
    char part[16 * 1024];
    for (;;) {
        auto const n = pread(file, part, sizeof part, static_cast<off_t>(text.size()));
        if (n <= 0) {
            return text;
        }
        text.append(part, static_cast<std::size_t>(n));
    }
}

bool is_read_by_presenced(std::string_view entry) {
    for (std::string_view const prefix : {"PRESENCED_", "DATABASE_URL", "PG"}) {
        if (entry.starts_with(prefix)) {
            return true;
        }
    }
    return false;
}

} // namespace

process::process(std::vector<std::string> const& command, environment const& extra, int errors)
    : output_{make_memory_file("output")}
    , errors_{make_memory_file("errors")} {
    std::vector<std::string> variables;
    for (auto entry = environ; *entry != nullptr; ++entry) {
        auto const name = std::string{*entry}.substr(0, std::strcspn(*entry, "="));
        if (!is_read_by_presenced(*entry) && extra.find(name) == extra.end()) {
            variables.emplace_back(*entry);
        }
    }
    for (auto const& [name, value] : extra) {
        variables.push_back(name + "=" + value);
    }
    std::vector<char*> arguments;
    for (auto const& argument : command) {
        arguments.push_back(const_cast<char*>(argument.c_str()));
    }
    arguments.push_back(nullptr);
    std::vector<char*> environment_block;
    for (auto const& variable : variables) {
        environment_block.push_back(const_cast<char*>(variable.c_str()));
    }
    environment_block.push_back(nullptr);

    pid_ = fork();
    if (pid_ < 0) {
        fail("fork");
    }
    if (pid_ == 0) {
        // Only what is async-signal-safe: the other threads' locks are held for ever here.
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        auto const nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, STDIN_FILENO);
        dup2(output_, STDOUT_FILENO);
        dup2(errors < 0 ? errors_ : errors, STDERR_FILENO);
        // Asio's sockets would live on in the child: a listener that nobody closed, a connection
        // that cannot be reset.
        close_range(3, ~0U, 0);
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, nullptr);
        execve(arguments[0], arguments.data(), environment_block.data());
        _exit(127);
    }
    handle_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    if (handle_ < 0) {
        fail("pidfd_open");
    }
}

process::~process() {
    if (!code_) {
        signal(SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    for (auto const file : {handle_, output_, errors_}) {
        close(file);
    }
}

void process::signal(int number) const {
    if (!code_) {
        ::kill(pid_, number);
    }
}

std::optional<int> process::wait(std::chrono::milliseconds limit) {
    if (code_) {
        return code_;
    }
    pollfd end{handle_, POLLIN, 0};
    auto const deadline = std::chrono::steady_clock::now() + limit;
    for (;;) {
        auto const left = std::chrono::ceil<std::chrono::milliseconds>(
            deadline - std::chrono::steady_clock::now());
        auto const ready = poll(&end, 1, left.count() > 0 ? static_cast<int>(left.count()) : 0);
        if (ready > 0) {
            break;
        }
        if (ready == 0) {
            return std::nullopt;
        }
        if (errno != EINTR) {
            fail("poll");
        }
    }
    int status = 0;
    if (waitpid(pid_, &status, 0) != pid_) {
        fail("waitpid");
    }
    code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return code_;
}

std::string process::output() const {
    return content_of(output_);
}

std::string process::errors() const {
    return content_of(errors_);
}

finished run(std::vector<std::string> const& command, environment const& extra,
             std::chrono::milliseconds limit) {
    process child{command, extra};
    auto const code = child.wait(limit);
    if (!code) {
        throw std::runtime_error{command.front() + " still runs after " +
                                 std::to_string(limit.count()) + " ms: " + child.errors()};
    }
    return {*code, child.output(), child.errors()};
}

} // namespace presenced::tests
