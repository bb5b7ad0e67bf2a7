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

    // Starts a server; `settings` as in postgresql.conf ("work_mem = 1MB").
    explicit postgres(std::vector<std::string> settings = {});
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

    // Every process of the server stops in its tracks, and goes on.
    void freeze();
    void thaw();
    // To one backend, by its pid. SIGKILL makes the server restart itself.
    static void signal(pid_t backend, int number);

private:
    void launch();
    bool answers() const;

    std::string bin_;
    std::string home_; // holds data/ and the socket
    std::vector<std::string> settings_;
    int port_ = 0;
    pid_t pid_ = 0;
    int lifeline_ = -1; // closes with this program; then another process cleans up
    bool has_template_ = false;
    unsigned databases_ = 0;
};

} // namespace presenced::tests
