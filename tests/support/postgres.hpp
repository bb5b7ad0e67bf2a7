// A private PostgreSQL for tests: its own data, socket and port, gone when the test program ends,
// however it ends. As root it runs as user `postgres`, because PostgreSQL refuses to run as root.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <sys/types.h>

namespace presenced::tests {

// True as soon as `holds` is; false when it was not by the deadline.
bool eventually(std::function<bool()> const& holds,
                std::chrono::milliseconds deadline = std::chrono::seconds{10});

// A port of 127.0.0.1 that nobody uses just now.
int free_port();

// A plain session on a database, as psql would be. Throws std::runtime_error with the server's
// message. Not thread-safe.
class sql_session {
public:
    explicit sql_session(std::string const& conninfo);
    ~sql_session();
    sql_session(sql_session&&) noexcept;
    sql_session& operator=(sql_session&&) noexcept;

    // Runs one or more statements. Returns the last one's rows, NULL as an empty string.
    std::vector<std::vector<std::string>> query(std::string const& sql);
    // The first column of the first row; empty when there is none.
    std::string value(std::string const& sql);
    // The same as a number; 0 when there is none.
    long number(std::string const& sql);
    // Payloads of the notifications that have arrived.
    std::vector<std::string> notifications();
    pid_t backend() const;

private:
    struct closer {
        void operator()(void* link) const;
    };
    std::unique_ptr<void, closer> link_;
};

// Members throw std::runtime_error. One thread.
class postgres {
public:
    enum class shutdown { fast, immediate };
    enum class clock { true_time, own };

    // Starts a server; `settings` as in postgresql.conf ("work_mem = 1MB"). With a clock of its
    // own it can be told another time, and needs libfaketime.
    explicit postgres(std::vector<std::string> settings = {}, clock which = clock::true_time);
    // Starts a standby, which reaches its primary at that port.
    explicit postgres(int primary_port);
    ~postgres();
    postgres(postgres const&) = delete;
    postgres& operator=(postgres const&) = delete;

    // The one that all tests of a program share, with plain settings.
    static postgres& shared();

    // A fresh database; with the migrations applied unless told otherwise. Returns its conninfo,
    // over TCP on loopback.
    std::string create_database(bool migrated = true);
    std::string conninfo(std::string const& database) const;
    std::string url(std::string const& database) const;
    int port() const { return port_; }

    void start();
    void stop(shutdown how = shutdown::fast);
    void restart(shutdown how = shutdown::fast) {
        stop(how);
        start();
    }

    // A standby takes over; returns when it can be written to.
    void promote();
    // Sets its own clock to the true time plus `by`, in all its processes at once.
    void set_clock(std::chrono::seconds by);

    // Every process of the server stops in its tracks, and goes on.
    void freeze();
    void thaw();
    // To one backend, by its pid. SIGKILL makes the server restart itself.
    static void signal(pid_t backend, int number);

private:
    struct bare {};
    explicit postgres(bare, std::vector<std::string> settings);
    void launch();
    bool answers() const;

    std::string bin_;
    std::string home_; // holds data/ and the socket
    std::vector<std::string> settings_;
    std::vector<std::string> variables_; // NAME=VALUE, for its environment
    int port_ = 0;
    pid_t pid_ = 0;
    int lifeline_ = -1; // closes with this program; then another process cleans up
    bool has_template_ = false;
    unsigned databases_ = 0;
};

} // namespace presenced::tests
