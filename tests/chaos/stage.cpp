#include "tests/chaos/stage.hpp"

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

namespace presenced::tests {

namespace {

constexpr milliseconds drain_timeout{2'000};

// Below the range from which the kernel takes ports for outgoing connections, so that a node finds
// its own free when it comes back.
std::uint16_t port_to_keep(std::uint16_t& from) {
    for (; from < 32'000; ++from) {
        int const fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(from);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        bool const is_free = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
        ::close(fd);
        if (is_free) {
            return from++;
        }
    }
    throw std::runtime_error{"no free port below 32000"};
}

std::string read(std::string const& path) {
    std::ifstream file{path};
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) {
        throw std::runtime_error{"cannot read " + path};
    }
    return text.str();
}

std::string number(unsigned choice, unsigned from, unsigned to) {
    return std::to_string(from + choice % (to - from + 1));
}

} // namespace

stage::stage(stage_options options)
    : options_{std::move(options)}
    , log_{options_.history, steady::now()} {
    environment const timings = a_tenth();
    auto const ms = [&](char const* name) {
        return std::stoi(timings.at(std::string{"PRESENCED_"} + name)); // up to its unit
    };
    world_ = std::make_unique<world>(timings, database_);
    if (!options_.functions.empty()) {
        replace_functions(options_.functions);
    }
    hot_ = world_->add_agents(static_cast<std::size_t>(options_.clients) / 7); // often empty
    homes_ = world_->add_agents(static_cast<std::size_t>(options_.clients) / 2);
    idle_ = world_->add_agents(20);
    tokens_.push_back(world_->token());
    for (int i = 1; i < 12; ++i) {
        tokens_.push_back(world_->add_token());
    }
    log_.write("run", {{"seed", options_.seed},
                       {"nodes", options_.nodes},
                       {"clients", options_.clients},
                       {"heartbeat", ms("HEARTBEAT")},
                       {"stale_after", ms("STALE_AFTER")},
                       {"sweep", ms("SWEEP")},
                       {"ping", ms("PING")},
                       {"peer_timeout", ms("PEER_TIMEOUT")}});
    canary_ = std::make_unique<canary>(log_, world_->conninfo());
    observer_ = std::make_unique<observer>(log_, world_->conninfo(), 40ms);
    auto from = static_cast<std::uint16_t>(20'000 + ::getpid() % 10'000);
    nodes_.resize(static_cast<std::size_t>(options_.nodes));
    for (int i = 0; i < options_.nodes; ++i) {
        auto& n = nodes_[static_cast<std::size_t>(i)];
        n.name = "n" + std::to_string(i);
        n.port = port_to_keep(from);
        n.door = std::make_unique<tcp_proxy>(n.port);
        n.wire = std::make_unique<tcp_proxy>(static_cast<std::uint16_t>(database_.port()));
        set_clock(i, i == 1 ? 1 + options_.seed % 5 : 0); // one is wrong from the start
        start_node(i);
        check_clock(n);
    }
    if (!eventually(
            [this] {
                look_after_nodes();
                return all_ready();
            },
            patience)) {
        throw std::runtime_error{"the nodes do not get ready"};
    }
    troupes_.resize(static_cast<std::size_t>(options_.processes));
    for (int i = 0; i < options_.processes; ++i) {
        start_clients(i);
    }
}

stage::~stage() {
    observer_.reset();
    canary_.reset();
    for (int i = 0; i < options_.nodes; ++i) {
        std::error_code ignored; // it is in a temporary directory
        std::filesystem::remove(clock_file(i), ignored);
    }
}

stage_size stage::size() const {
    return {options_.nodes, options_.processes, static_cast<int>(tokens_.size())};
}

// A patched copy of a migration: every function in it, put in the place of the one there is.
void stage::replace_functions(std::string const& path) {
    auto const text = read(path);
    std::string_view const opening = "CREATE OR REPLACE FUNCTION ";
    std::string_view const closing = "\nEND $$;";
    for (auto at = text.find(opening); at != text.npos; at = text.find(opening, at + 1)) {
        auto const end = text.find(closing, at);
        auto const next = text.find(opening, at + 1);
        if (end == text.npos || (next != text.npos && next < end)) {
            continue; // a function in SQL
        }
        world_->sql().query(text.substr(at, end + closing.size() - at));
    }
}

// ---- Nodes ------------------------------------------------------------------------------------

std::string stage::clock_file(int i) const {
    return "/tmp/presenced-chaos-clock-" + std::to_string(::getpid()) + '-' + std::to_string(i);
}

void stage::set_clock(int i, unsigned choice) {
    static constexpr std::int64_t wrong_by[] = {0, 5 * 3'600, -3 * 3'600, 2 * 86'400, -2'400, 90};
    auto& n = nodes_[static_cast<std::size_t>(i)];
    n.clock = wrong_by[choice % std::size(wrong_by)];
    // In place: the node has it mapped.
    int const file = ::open(clock_file(i).c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    auto const written = ::pwrite(file, &n.clock, sizeof n.clock, 0);
    ::close(file);
    if (written != sizeof n.clock) {
        throw std::runtime_error{"cannot write " + clock_file(i)};
    }
}

// A preloaded library that does nothing would leave P8 untested, and nobody would see.
void stage::check_clock(place const& n) {
    auto const text = n.process->log(); // begins with the time
    std::tm parts{};
    auto const* const rest = ::strptime(text.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
    auto const wrong_by = ::timegm(&parts) - std::time(nullptr);
    if (rest == nullptr || std::abs(wrong_by - n.clock) > 30) {
        throw std::runtime_error{"the clock of " + n.name + " should be wrong by " +
                                 std::to_string(n.clock) + " s:\n" + text};
    }
}

void stage::start_node(int i) {
    auto& n = nodes_[static_cast<std::size_t>(i)];
    auto conninfo = world_->conninfo();
    auto const port = "port=" + std::to_string(database_.port());
    conninfo.replace(conninfo.find(port), port.size(), "port=" + std::to_string(n.wire->port()));
    environment more{{"PRESENCED_NODE", n.name},
                     {"PRESENCED_LISTEN", "127.0.0.1:" + std::to_string(n.port)},
                     {"PRESENCED_LOG_LEVEL", "info"},
                     {"PRESENCED_DRAIN_TIMEOUT", std::to_string(drain_timeout.count()) + "ms"},
                     {"PRESENCED_UNREACHABLE_LIMIT", "12s"},
                     {"DATABASE_URL", conninfo}};
    auto const* const asan = std::getenv("ASAN_OPTIONS");
    more["LD_PRELOAD"] = options_.wrong_clock;
    more["PRESENCED_TEST_CLOCK"] = clock_file(i);
    more["ASAN_OPTIONS"] = std::string{asan != nullptr ? asan : ""} + ":verify_asan_link_order=0";
    ++n.boots;
    log_.write("node", {{"n", i}, {"boot", n.boots}, {"clock", n.clock}});
    n.process = std::make_unique<node>(world_->node_settings(more));
    n.ready = false;
    n.expected = true;
    canary_->watch(n.name, n.process->pid());
}

void stage::end_node(int i, int signal, milliseconds limit) {
    auto& n = nodes_[static_cast<std::size_t>(i)];
    n.expected = false;
    n.ready = false;
    n.process->signal(signal);
    if (limit == 0ms) {
        return;
    }
    auto code = n.process->wait(limit);
    if (!code) {
        log_.write("stuck", {{"n", i}});
        ++casualties_;
        n.process->signal(SIGKILL);
        code = n.process->wait(patience);
    }
    log_.write("node_exit", {{"n", i}, {"boot", n.boots}, {"code", code.value_or(-1)}});
    canary_->watch(n.name, 0);
    n.process.reset();
}

void stage::look_after_nodes() {
    for (int i = 0; i < options_.nodes; ++i) {
        auto& n = nodes_[static_cast<std::size_t>(i)];
        if (!n.expected || !n.process || n.frozen) {
            continue;
        }
        if (auto const code = n.process->wait(0ms)) {
            auto const text = n.process->log();
            log_.write("crash", {{"n", i},
                                 {"boot", n.boots},
                                 {"code", *code},
                                 {"log", text.substr(text.size() -
                                                     std::min<std::size_t>(text.size(), 3'000))}});
            std::cerr << n.name << " ended by itself, code " << *code << ":\n" << text;
            ++casualties_;
            n.process.reset();
            start_node(i);
            continue;
        }
        if (!n.ready) {
            try {
                n.ready = n.process->get("/readyz").status == 200;
            } catch (std::exception const&) {
                n.ready = false; // it does not take connections yet
            }
            if (n.ready) {
                log_.write("ready", {{"n", i}, {"boot", n.boots}});
            }
        }
    }
}

bool stage::all_ready() const {
    return std::all_of(nodes_.begin(), nodes_.end(), [](auto const& n) { return n.ready; });
}

void stage::ask_again_who_is_ready() {
    for (auto& n : nodes_) {
        n.ready = false;
    }
}

// ---- Clients ----------------------------------------------------------------------------------

void stage::start_clients(int slot) {
    auto& t = troupes_[static_cast<std::size_t>(slot)];
    auto const number = ++last_process_;
    t.incarnation = number;
    auto const each = options_.clients / options_.processes;
    json doors = json::array();
    for (int i = 0; i < options_.nodes; ++i) {
        doors.push_back({i, nodes_[static_cast<std::size_t>(i)].door->port()});
    }
    json clients = json::array();
    for (int i = 0; i < each; ++i) {
        auto const id = slot * each + i;
        // Two residents an agent, mostly on different nodes; a quarter wander.
        bool const resident = i % 4 != 0;
        json agents = json::array();
        if (resident) {
            agents.push_back(homes_[static_cast<std::size_t>(id) % homes_.size()]);
        }
        clients.push_back({{"id", id}, {"agents", agents}, {"resident", resident}});
    }
    json const plan{{"history", options_.history},
                    {"start_us", std::chrono::duration_cast<std::chrono::microseconds>(
                                     log_.start().time_since_epoch())
                                     .count()},
                    {"process", number},
                    {"seed", options_.seed * 7919U + static_cast<unsigned>(number)},
                    {"doors", doors},
                    {"tokens", tokens_},
                    {"clients", clients},
                    {"hot", hot_},
                    {"ping_ms", 300}};
    log_.write("clients", {{"p", number}, {"slot", slot}});
    t.processes = std::make_unique<process>(
        std::vector<std::string>{options_.self, "clients", plan.dump()}, environment{});
}

void stage::clients_leave() {
    log_.write("leave");
    for (auto& t : troupes_) {
        t.processes->signal(SIGTERM);
    }
    for (auto& t : troupes_) {
        if (auto const code = t.processes->wait(10s); code != 0) {
            std::cerr << "clients ended with " << code.value_or(-1) << ":\n"
                      << t.processes->errors();
            ++casualties_;
        }
    }
    log_.write("left");
}

bool stage::is_empty() {
    auto sql = world_->another_session();
    return sql.number("SELECT (SELECT count(*) FROM agent_subscriptions) + "
                      "(SELECT count(*) FROM agents WHERE routing_active)") == 0;
}

void stage::nodes_leave() {
    for (int i = 0; i < options_.nodes; ++i) {
        log_.write("fault",
                   {{"kind", "node_drained"}, {"target", i}, {"id", "end" + std::to_string(i)}});
        end_node(i, SIGTERM, patience);
    }
}

// ---- Faults -----------------------------------------------------------------------------------

std::vector<std::vector<std::string>> stage::by_hand(std::string const& sql) {
    auto session = world_->another_session();
    session.query("SET lock_timeout = '1s'");
    return session.query(sql);
}

void stage::lock(fault const& f, std::string const& sql) {
    auto session = std::make_unique<sql_session>(world_->another_session());
    session->query("SET lock_timeout = '1s'; BEGIN");
    json held = json::array();
    for (auto const& r : session->query(sql)) {
        held.push_back(r.at(0));
    }
    log_.write("locked", {{"kind", f.kind}, {"id", std::to_string(f.at.count())}, {"what", held}});
    locks_[f.kind + std::to_string(f.at.count())] = std::move(session);
}

void stage::release(fault const& f) {
    locks_.erase(f.kind + std::to_string(f.at.count()));
}

void stage::begin(fault const& f) {
    auto const& kind = f.kind;
    auto& n = nodes_[static_cast<std::size_t>(f.target) % nodes_.size()];
    auto const any_order = " ORDER BY md5(token || '" + std::to_string(f.choice) + "') ";
    log_.write("fault", {{"kind", kind},
                         {"target", f.target},
                         {"id", std::to_string(f.at.count())},
                         {"length", f.length.count()}});
    if (kind == "node_killed") {
        end_node(f.target, SIGKILL, patience);
    } else if (kind == "node_frozen") {
        n.frozen = true;
        n.process->signal(SIGSTOP);
    } else if (kind == "node_drained") {
        n.told_to_end = steady::now();
        end_node(f.target, SIGTERM, 0ms);
    } else if (kind == "node_clock") {
        set_clock(f.target, f.choice);
        log_.write("clock", {{"n", f.target}, {"clock", n.clock}});
    } else if (kind == "clients_killed" || kind == "clients_frozen") {
        auto& t = troupes_[static_cast<std::size_t>(f.target)];
        log_.write(kind == "clients_killed" ? "killed" : "frozen", {{"p", t.incarnation}});
        t.processes->signal(kind == "clients_killed" ? SIGKILL : SIGSTOP);
    } else if (kind == "exodus") {
        // While nodes are releasing what these clients held, their connections break.
        auto& t = troupes_[static_cast<std::size_t>(f.target)];
        log_.write("killed", {{"p", t.incarnation}});
        t.processes->signal(SIGKILL);
        for (int cut = 0; cut < 4; ++cut) {
            std::this_thread::sleep_for(std::chrono::microseconds{500 + f.choice % 2'500});
            for (int i = 0; i < options_.nodes; ++i) {
                json const what{{"kind", "wire_cut"}, {"target", i}, {"id", "exodus"}};
                log_.write("fault", what);
                nodes_[static_cast<std::size_t>(i)].wire->cut();
                log_.write("over", what);
            }
        }
    } else if (kind == "door_delay") {
        n.door->delay(milliseconds{20 + f.choice % 300});
    } else if (kind == "door_cut") {
        n.door->cut();
    } else if (kind == "door_refused") {
        n.door->refuse();
    } else if (kind == "door_hole") {
        n.door->black_hole();
    } else if (kind == "door_hole_up") {
        n.door->black_hole(tcp_proxy::towards::server);
    } else if (kind == "door_hole_down") {
        n.door->black_hole(tcp_proxy::towards::client);
    } else if (kind == "wire_delay") {
        n.wire->delay(milliseconds{10 + f.choice % 200});
    } else if (kind == "wire_cut") {
        n.wire->cut();
    } else if (kind == "wire_refused") {
        n.wire->refuse();
    } else if (kind == "wire_hole") {
        n.wire->black_hole();
    } else if (kind == "wire_hole_up") {
        n.wire->black_hole(tcp_proxy::towards::server);
    } else if (kind == "wire_hole_down") {
        n.wire->black_hole(tcp_proxy::towards::client);
    } else if (kind == "hang_up") {
        by_hand("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'presenced'");
    } else if (kind == "database_restarted") {
        database_.stop(postgres::shutdown::fast);
    } else if (kind == "database_stopped") {
        database_.stop(f.choice % 2 == 0 ? postgres::shutdown::fast
                                         : postgres::shutdown::immediate);
    } else if (kind == "database_crashed") {
        database_.stop(postgres::shutdown::immediate);
    } else if (kind == "backend_killed") {
        auto const pid = by_hand("SELECT pid FROM pg_stat_activity "
                                 "WHERE application_name = 'presenced' ORDER BY pid LIMIT 1");
        if (!pid.empty()) {
            postgres::signal(std::stoi(pid[0][0]), SIGKILL);
        }
    } else if (kind == "database_frozen") {
        database_.freeze();
    } else if (kind == "table_locked") {
        lock(f, "LOCK TABLE agent_subscriptions IN SHARE ROW EXCLUSIVE MODE; SELECT 'table'");
    } else if (kind == "rows_deleted") {
        json gone = json::array();
        auto const before = log_.now();
        for (auto const& r : by_hand(
                 "DELETE FROM agent_subscriptions WHERE token IN (SELECT token "
                 "FROM agent_subscriptions" +
                 any_order + "LIMIT " + number(f.choice, 1, 25) +
                 " FOR UPDATE SKIP LOCKED) RETURNING token, agent_id, coalesce(session_id, '')")) {
            gone.push_back({r[0], std::stol(r[1]), r[2]});
        }
        log_.write("deleted", {{"since", before}, {"rows", gone}});
    } else if (kind == "rows_inserted") {
        json made = json::array();
        auto const before = log_.now();
        for (auto const& r :
             by_hand("INSERT INTO agent_subscriptions (agent_id, token) SELECT id, 'by-hand-' || "
                     "gen_random_uuid() FROM agents ORDER BY md5(id || '" +
                     std::to_string(f.choice) + "') LIMIT " + number(f.choice, 1, 8) +
                     " RETURNING token, agent_id")) {
            made.push_back({r[0], std::stol(r[1])});
        }
        log_.write("inserted", {{"since", before}, {"rows", made}});
    } else if (kind == "agents_locked") {
        lock(f, "SELECT id FROM agents ORDER BY id % 17 <> " + std::to_string(f.choice % 17) +
                    ", id LIMIT " + number(f.choice, 1, 12) + " FOR NO KEY UPDATE");
    } else if (kind == "rows_locked") {
        lock(f, "SELECT token FROM agent_subscriptions" + any_order + "LIMIT " +
                    number(f.choice, 1, 12) + " FOR UPDATE");
    } else if (kind == "token_revoked") {
        by_hand("UPDATE access_tokens SET revoked_at = clock_timestamp() WHERE token_sha256 = "
                "sha256(convert_to('" +
                tokens_.at(static_cast<std::size_t>(f.target) + 1) + "', 'UTF8'))");
        log_.write("revoked", {{"k", f.target + 1}});
    } else {
        throw std::logic_error{"no fault is called " + kind};
    }
}

void stage::end(fault const& f) {
    auto const& kind = f.kind;
    auto& n = nodes_[static_cast<std::size_t>(f.target) % nodes_.size()];
    if (kind == "node_killed") {
        set_clock(f.target, f.choice);
        start_node(f.target);
    } else if (kind == "node_frozen") {
        n.process->signal(SIGCONT);
        n.frozen = false;
    } else if (kind == "node_drained") {
        // Not by the plan: a fault begins late when the one before it took long.
        auto const left = drain_timeout + after_drain_timeout - since(n.told_to_end);
        end_node(f.target, 0, std::max(left, 1ms));
        set_clock(f.target, f.choice);
        start_node(f.target);
    } else if (kind == "clients_killed" || kind == "exodus") {
        start_clients(f.target);
    } else if (kind == "clients_frozen") {
        auto& t = troupes_[static_cast<std::size_t>(f.target)];
        t.processes->signal(SIGCONT);
        log_.write("thawed", {{"p", t.incarnation}});
    } else if (kind.starts_with("door_")) {
        n.door->heal();
    } else if (kind.starts_with("wire_")) {
        n.wire->heal();
    } else if (kind == "database_restarted" || kind == "database_stopped" ||
               kind == "database_crashed") {
        database_.start();
    } else if (kind == "backend_killed") {
        if (!eventually(
                [this] {
                    try {
                        return by_hand("SELECT 1").size() == 1;
                    } catch (std::runtime_error const&) {
                        return false;
                    }
                },
                patience)) {
            throw std::runtime_error{"PostgreSQL does not come back"};
        }
    } else if (kind == "database_frozen") {
        database_.thaw();
    } else if (kind == "table_locked" || kind == "agents_locked" || kind == "rows_locked") {
        release(f);
    } else if (kind == "token_revoked") {
        by_hand("UPDATE access_tokens SET revoked_at = NULL WHERE token_sha256 = "
                "sha256(convert_to('" +
                tokens_.at(static_cast<std::size_t>(f.target) + 1) + "', 'UTF8'))");
    }
    log_.write("over",
               {{"kind", kind}, {"target", f.target}, {"id", std::to_string(f.at.count())}});
}

} // namespace presenced::tests
