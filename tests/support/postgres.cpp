#include "tests/support/postgres.hpp"

#include "db/admin/schema.hpp"

#include <libpq-fe.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <utility>

#include <arpa/inet.h>
#include <fcntl.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace presenced::tests {

namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Whom the server runs as: ourselves, or user postgres when we are root.
struct server_user {
    uid_t uid = ::geteuid();
    gid_t gid = ::getegid();
};

server_user const& user() {
    static server_user const chosen = [] {
        server_user u;
        if (u.uid == 0) {
            auto const* entry = ::getpwnam("postgres");
            if (entry == nullptr) {
                throw std::runtime_error{"tests as root need a user `postgres` for the server"};
            }
            u.uid = entry->pw_uid;
            u.gid = entry->pw_gid;
        }
        return u;
    }();
    return chosen;
}

// The newest PostgreSQL that is installed, 15 at least.
std::string find_binaries() {
    if (char const* given = std::getenv("PRESENCED_TEST_PG_BIN"); given != nullptr) {
        return given;
    }
    int newest = 14;
    std::error_code ignored; // no such directory: nothing is installed
    for (auto const& entry : fs::directory_iterator{"/usr/lib/postgresql", ignored}) {
        auto const version = std::atoi(entry.path().filename().c_str());
        if (fs::exists(entry.path() / "bin/postgres")) {
            newest = std::max(newest, version);
        }
    }
    if (newest < 15) {
        throw std::runtime_error{
            "no PostgreSQL 15 or newer in /usr/lib/postgresql; set PRESENCED_TEST_PG_BIN"};
    }
    return "/usr/lib/postgresql/" + std::to_string(newest) + "/bin";
}

// Runs a program as the server's user with output to `log`; the caller waits for it.
pid_t spawn(std::vector<std::string> const& command, std::string const& log,
            std::vector<std::string> const& more_variables = {}) {
    std::vector<char*> arguments;
    for (auto const& word : command) {
        arguments.push_back(const_cast<char*>(word.c_str()));
    }
    arguments.push_back(nullptr);
    std::vector<char*> variables;
    for (auto const& variable : more_variables) {
        variables.push_back(const_cast<char*>(variable.c_str()));
    }
    for (auto** entry = environ; *entry != nullptr; ++entry) {
        variables.push_back(*entry);
    }
    variables.push_back(nullptr);
    auto const who = user();
    auto const pid = ::fork();
    if (pid < 0) {
        throw std::runtime_error{std::string{"fork: "} + std::strerror(errno)};
    }
    if (pid == 0) {
        ::setsid(); // Ctrl-C is for the test program, which then ends the server in order
        if (::geteuid() == 0 && (::setgid(who.gid) != 0 || ::setuid(who.uid) != 0)) {
            ::_exit(126);
        }
        int const out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
        int const in = ::open("/dev/null", O_RDONLY);
        ::dup2(in, 0);
        ::dup2(out, 1);
        ::dup2(out, 2);
        ::close_range(3, ~0U, 0); // the test's sockets are not the server's to keep
        if (::chdir("/") != 0) {
            ::_exit(126);
        }
        ::execve(arguments[0], arguments.data(), variables.data());
        ::_exit(127);
    }
    return pid;
}

void run(std::vector<std::string> const& command, std::string const& log) {
    int status = 0;
    auto const pid = spawn(command, log);
    if (::waitpid(pid, &status, 0) != pid || status != 0) {
        std::ifstream text{log};
        std::ostringstream all;
        all << text.rdbuf();
        throw std::runtime_error{command[0] + " failed: " + all.str()};
    }
}

// A directory of the server's user that nobody else can guess.
std::string make_home() {
    char name[] = "/tmp/presenced-test-XXXXXX"; // short: a socket's path may have 107 bytes
    if (::mkdtemp(name) == nullptr || ::chown(name, user().uid, user().gid) != 0) {
        throw std::runtime_error{std::string{"temporary directory: "} + std::strerror(errno)};
    }
    return name;
}

// initdb takes seconds, a copy of its result does not. The original is kept between runs.
void make_data(std::string const& bin, std::string const& home) {
    auto name = bin;
    std::replace(name.begin(), name.end(), '/', '-');
    auto const cache = "/tmp/presenced-test-initdb" + name + "-" + std::to_string(user().uid);
    auto const log = home + "/initdb.log";
    struct stat facts {};
    bool const cached = ::lstat(cache.c_str(), &facts) == 0;
    if (cached && (facts.st_uid != user().uid || !S_ISDIR(facts.st_mode))) {
        throw std::runtime_error{cache + " is somebody else's; remove it"};
    }
    if (!cached) {
        run({bin + "/initdb", "-D", home + "/data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"},
            log);
        auto const copy = home + "/copy";
        run({"/bin/cp", "-a", home + "/data", copy}, log);
        if (::rename(copy.c_str(), cache.c_str()) != 0) {
            fs::remove_all(copy); // somebody else was quicker
        }
        return;
    }
    run({"/bin/cp", "-a", cache, home + "/data"}, log);
}

std::string find_faketime() {
    std::error_code ignored; // no such directory: nothing is installed
    for (auto const& entry : fs::directory_iterator{"/usr/lib", ignored}) {
        auto const library = entry.path() / "faketime/libfaketime.so.1";
        if (fs::exists(library)) {
            return library;
        }
    }
    throw std::runtime_error{"a server with a clock of its own needs Debian's libfaketime"};
}

std::vector<pid_t> children_of(pid_t parent) {
    std::vector<pid_t> children;
    for (auto const& entry : fs::directory_iterator{"/proc"}) {
        auto const pid = std::atoi(entry.path().filename().c_str());
        if (pid <= 0) {
            continue;
        }
        std::ifstream file{entry.path() / "stat"};
        std::string text;
        std::getline(file, text);
        auto const name_end = text.rfind(')');
        if (name_end == std::string::npos) {
            continue; // it is gone already
        }
        char state = 0;
        pid_t of = 0;
        std::istringstream rest{text.substr(name_end + 1)};
        rest >> state >> of;
        if (of == parent) {
            children.push_back(pid);
        }
    }
    return children;
}

} // namespace

// Below the range from which the kernel takes the ports of clients (ip_local_port_range), so that
// no client sits on it while its server restarts.
int free_port() {
    static std::minstd_rand random{std::random_device{}()};
    std::uniform_int_distribution<int> pick{20'000, 32'000};
    for (int attempt = 0; attempt < 1'000; ++attempt) {
        auto const port = pick(random);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        address.sin_port = htons(static_cast<std::uint16_t>(port));
        int const fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        auto const* generic = reinterpret_cast<sockaddr const*>(&address);
        bool const is_free = ::bind(fd, generic, sizeof address) == 0;
        ::close(fd);
        if (is_free) {
            return port;
        }
    }
    throw std::runtime_error{"no free port on loopback"};
}

bool eventually(std::function<bool()> const& holds, milliseconds deadline) {
    auto const end = steady_clock::now() + deadline;
    while (!holds()) {
        if (steady_clock::now() >= end) {
            return holds();
        }
        std::this_thread::sleep_for(milliseconds{5});
    }
    return true;
}

void sql_session::closer::operator()(void* link) const {
    PQfinish(static_cast<PGconn*>(link));
}

sql_session::sql_session(std::string const& conninfo)
    : link_{PQconnectdb(conninfo.c_str())} {
    auto* const link = static_cast<PGconn*>(link_.get());
    if (PQstatus(link) != CONNECTION_OK) {
        throw std::runtime_error{PQerrorMessage(link)};
    }
    PQsetNoticeProcessor(
        link, [](void*, char const*) {}, nullptr);
}

sql_session::~sql_session() = default;
sql_session::sql_session(sql_session&&) noexcept = default;
sql_session& sql_session::operator=(sql_session&&) noexcept = default;

std::vector<std::vector<std::string>> sql_session::query(std::string const& sql) {
    auto* const link = static_cast<PGconn*>(link_.get());
    std::unique_ptr<PGresult, decltype(&PQclear)> const result{PQexec(link, sql.c_str()), &PQclear};
    auto const status = PQresultStatus(result.get());
    if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
        throw std::runtime_error{PQerrorMessage(link)};
    }
    std::vector<std::vector<std::string>> rows;
    for (int r = 0; r < PQntuples(result.get()); ++r) {
        std::vector<std::string> fields;
        for (int c = 0; c < PQnfields(result.get()); ++c) {
            fields.emplace_back(PQgetvalue(result.get(), r, c));
        }
        rows.push_back(std::move(fields));
    }
    return rows;
}

std::string sql_session::value(std::string const& sql) {
    auto const rows = query(sql);
    return rows.empty() ? std::string{} : rows[0].at(0);
}

long sql_session::number(std::string const& sql) {
    auto const text = value(sql);
    return text.empty() ? 0 : std::stol(text);
}

std::vector<std::string> sql_session::notifications() {
    auto* const link = static_cast<PGconn*>(link_.get());
    PQconsumeInput(link);
    std::vector<std::string> payloads;
    while (auto* const n = PQnotifies(link)) {
        payloads.emplace_back(n->extra);
        PQfreemem(n);
    }
    return payloads;
}

pid_t sql_session::backend() const {
    return PQbackendPID(static_cast<PGconn*>(link_.get()));
}

postgres::postgres(std::vector<std::string> settings, clock which)
    : postgres{bare{}, std::move(settings)} {
    make_data(bin_, home_);
    if (which == clock::own) {
        variables_ = {
            "LD_PRELOAD=" + find_faketime(), "FAKETIME_TIMESTAMP_FILE=" + home_ + "/clock",
            // Asked for at every look; and waiting is not to be disturbed.
            "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"};
        set_clock(std::chrono::seconds{0});
    }
    start();
}

postgres::postgres(int primary_port)
    : postgres{bare{}, {}} {
    run({bin_ + "/pg_basebackup", "-D", home_ + "/data", "-h", "127.0.0.1", "-p",
         std::to_string(primary_port), "-U", "postgres", "-R", "-X", "stream", "--checkpoint=fast",
         "--no-sync"},
        home_ + "/basebackup.log");
    start();
}

postgres::postgres(bare, std::vector<std::string> settings)
    : bin_{find_binaries()}
    , home_{make_home()}
    , settings_{std::move(settings)} {
    // Outlives this program by a moment, to clean up also after a crash.
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
        throw std::runtime_error{std::string{"pipe: "} + std::strerror(errno)};
    }
    auto const pid = ::fork();
    if (pid == 0) {
        ::setsid();
        ::dup2(ends[0], 0);
        int const nowhere = ::open("/dev/null", O_WRONLY);
        ::dup2(nowhere, 1);
        ::dup2(nowhere, 2);
        ::close_range(3, ~0U, 0);
        char const* const script =
            "read -r line; p=$(head -n 1 \"$0/data/postmaster.pid\") && kill -CONT \"$p\" && "
            "kill -QUIT \"$p\"; n=0; "
            "while [ -e \"$0/data/postmaster.pid\" ] && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); "
            "done; rm -rf -- \"$0\"";
        ::execl("/bin/sh", "sh", "-c", script, home_.c_str(), nullptr);
        ::_exit(127);
    }
    ::close(ends[0]);
    lifeline_ = ends[1];
}

postgres::~postgres() {
    if (pid_ != 0) {
        thaw();
        ::kill(pid_, SIGQUIT);
        ::waitpid(pid_, nullptr, 0);
    }
    std::error_code ignored; // the other process removes what is left
    fs::remove_all(home_, ignored);
    ::close(lifeline_);
}

postgres& postgres::shared() {
    static postgres server;
    return server;
}

std::string postgres::conninfo(std::string const& database) const {
    return "host=127.0.0.1 port=" + std::to_string(port_) + " user=postgres dbname=" + database;
}

std::string postgres::url(std::string const& database) const {
    return "postgresql://postgres@127.0.0.1:" + std::to_string(port_) + "/" + database;
}

std::string postgres::create_database(bool migrated) {
    sql_session admin{conninfo("postgres")};
    if (migrated && !has_template_) {
        admin.query("CREATE DATABASE migrated");
        db::migrate(conninfo("migrated"), std::nullopt);
        // Tests switch an agent on and off more often than any client may.
        sql_session{conninfo("migrated")}.query("UPDATE presence_clock SET flip_every = '0 s'");
        has_template_ = true;
    }
    auto const name = "test_" + std::to_string(++databases_);
    admin.query("CREATE DATABASE " + name + (migrated ? " TEMPLATE migrated" : ""));
    return conninfo(name);
}

bool postgres::answers() const {
    return PQping(conninfo("postgres").c_str()) == PQPING_OK;
}

void postgres::launch() {
    std::vector<std::string> command{
        bin_ + "/postgres", "-D", home_ + "/data",      "-k", home_, "-h",
        "127.0.0.1",        "-p", std::to_string(port_)};
    for (auto const& setting :
         {"fsync = off", "full_page_writes = off", "shared_buffers = 32MB", "max_connections = 100",
          "log_min_messages = warning", "max_wal_size = 256MB"}) {
        command.insert(command.end(), {"-c", setting});
    }
    for (auto const& setting : settings_) {
        command.insert(command.end(), {"-c", setting});
    }
    // The command line takes name=value without spaces around the sign.
    for (auto& word : command) {
        if (auto const sign = word.find(" = "); sign != std::string::npos) {
            word.replace(sign, 3, "=");
        }
    }
    pid_ = spawn(command, home_ + "/server.log", variables_);
}

void postgres::start() {
    // Somebody may take the port between our asking for it and the server's; a restart keeps it.
    for (int attempt = 0; attempt < 3; ++attempt) {
        if (port_ == 0) {
            port_ = free_port();
        }
        launch();
        bool ended = false;
        auto const ready = eventually(
            [&] {
                ended = ::waitpid(pid_, nullptr, WNOHANG) == pid_;
                return ended || answers();
            },
            std::chrono::seconds{30});
        if (ready && !ended) {
            return;
        }
        if (!ended) {
            break;
        }
        pid_ = 0;
        port_ = 0;
    }
    std::ifstream text{home_ + "/server.log"};
    std::ostringstream all;
    all << text.rdbuf();
    throw std::runtime_error{"PostgreSQL did not start: " + all.str()};
}

void postgres::stop(shutdown how) {
    thaw();
    ::kill(pid_, how == shutdown::fast ? SIGINT : SIGQUIT);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
}

void postgres::promote() {
    sql_session admin{conninfo("postgres")};
    if (admin.value("SELECT pg_promote(wait_seconds => 30)") != "t") {
        throw std::runtime_error{"the standby was not promoted"};
    }
}

void postgres::set_clock(std::chrono::seconds by) {
    // In one step: a process that reads it while it is written would see half of it.
    auto const file = home_ + "/clock";
    std::ofstream{file + ".new"} << (by.count() < 0 ? "" : "+") << by.count() << '\n';
    fs::rename(file + ".new", file);
}

void postgres::freeze() {
    ::kill(pid_, SIGSTOP);
    for (auto const child : children_of(pid_)) {
        ::kill(child, SIGSTOP);
    }
}

void postgres::thaw() {
    for (auto const child : children_of(pid_)) {
        ::kill(child, SIGCONT);
    }
    ::kill(pid_, SIGCONT);
}

void postgres::signal(pid_t backend, int number) {
    if (::kill(backend, number) != 0) {
        throw std::runtime_error{std::string{"kill: "} + std::strerror(errno)};
    }
}

} // namespace presenced::tests
