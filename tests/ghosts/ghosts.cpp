// Seconds from the end of a session to its routing flag off, by how the session ended: a table.
//
//   tests/ghosts/run                                    presenced: default timings, and a tenth
//   tests/ghosts/run --timings tenth --json ghosts.json
//   tests/ghosts/run --server Rails=bench/peers/rails/serve --beside ghosts.json
//
// The last one measures another server, and shows its column beside those of an earlier run. Its
// command is run by sh, in a process group of its own which is killed and frozen as a whole, with
// PORT and DATABASE_URL in its environment: a PostgreSQL with presenced's schema, an agent and an
// access token. It has to serve Action Cable on 127.0.0.1:PORT/cable and to keep
// agents.routing_active. Two are started, on one database, as two nodes. A case is given up after
// --limit seconds; its cell then says that the flag was still on.
#include "tests/support/process.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

using namespace presenced::tests;

namespace {

using seconds = std::chrono::duration<double>;

// Whom to measure.
struct contender {
    std::string title;
    std::string command; // empty: presenced,
    int part = 1;        // at the default timings divided by this
};

// A database and two nodes on it, a fresh one for every case.
class subject {
public:
    explicit subject(contender const& who)
        : who_{who}
        , world_{timings(1, who.part)}
        , agent_{world_.add_agent()} {
        start();
        start();
    }
    ~subject() {
        for (auto const& other : others_) {
            ::kill(-other->pid(), SIGKILL);
        }
    }
    subject(subject const&) = delete;
    subject& operator=(subject const&) = delete;

    // Another node. Number 0 is the one that the session is on.
    void start() {
        auto const name = "node" + std::to_string(ports_.size());
        if (who_.command.empty()) {
            nodes_.push_back(
                world_.start_node({{"PRESENCED_NODE", name}, {"PRESENCED_LOG_LEVEL", "info"}}));
            ports_.push_back(nodes_.back()->port());
            return;
        }
        ports_.push_back(static_cast<std::uint16_t>(free_port()));
        auto const database = world_.sql().value("SELECT current_database()");
        others_.push_back(std::make_unique<process>(
            std::vector<std::string>{"/usr/bin/setsid", "/bin/sh", "-c", "exec " + who_.command},
            environment{{"PORT", std::to_string(ports_.back())},
                        {"DATABASE_URL", postgres::shared().url(database)}}));
    }

    void signal(std::size_t number, int what) {
        if (who_.command.empty()) {
            nodes_[number]->signal(what);
        } else {
            ::kill(-others_[number]->pid(), what);
        }
    }

    std::uint16_t port() const { return ports_.front(); }
    bool is_on() { return world_.is_active(agent_); }

    std::unique_ptr<process> start_client(std::uint16_t port) const {
        return std::make_unique<process>(
            std::vector<std::string>{binary(), "connect",
                                     "ws://127.0.0.1:" + std::to_string(port) + "/cable", "--agent",
                                     std::to_string(agent_), "--once"},
            environment{{"PRESENCED_TOKEN", world_.token()}});
    }

private:
    contender const& who_;
    world world_;
    std::int64_t agent_;
    std::vector<std::uint16_t> ports_;
    std::vector<std::unique_ptr<node>> nodes_;     // of presenced,
    std::vector<std::unique_ptr<process>> others_; // or of another server
};

// ---- The cases --------------------------------------------------------------------------------

enum class ending {
    clean_close,
    client_killed,
    client_frozen,
    path_black_holed,
    node_killed,
    node_frozen,
    all_nodes_killed,
};

struct way_to_end {
    ending how;
    char const* key;
    char const* title;
};
constexpr way_to_end ways[] = {
    {ending::clean_close, "clean_close", "clean close"},
    {ending::client_killed, "client_killed", "client killed"},
    {ending::client_frozen, "client_frozen", "client frozen"},
    {ending::path_black_holed, "path_black_holed", "path black-holed"},
    {ending::node_killed, "node_killed", "node killed"},
    {ending::node_frozen, "node_frozen", "node frozen"},
    {ending::all_nodes_killed, "all_nodes_killed", "all nodes killed, one back"},
};

struct outcome {
    std::optional<seconds> took; // nothing when the flag was still on after the limit
    seconds starting{};          // of which a new node took until it was ready
};

outcome measure(contender const& who, ending how, milliseconds limit) {
    outcome seen;
    subject s{who};
    tcp_proxy path{s.port()};
    auto const port = how == ending::path_black_holed ? path.port() : s.port();
    std::unique_ptr<process> client;
    // The server may still be starting.
    auto const connected = eventually(
        [&] {
            if (!client || client->wait(0ms)) {
                client = s.start_client(port);
                client->wait(200ms);
            }
            return s.is_on();
        },
        60s);
    if (!connected) {
        throw std::runtime_error{"no session within 60 s; the client said: " + client->errors()};
    }
    auto const end = steady::now();
    switch (how) {
    case ending::clean_close:
        client->signal(SIGTERM);
        break;
    case ending::client_killed:
        client->signal(SIGKILL);
        break;
    case ending::client_frozen:
        client->signal(SIGSTOP);
        break;
    case ending::path_black_holed:
        path.black_hole();
        break;
    case ending::node_killed:
        s.signal(0, SIGKILL);
        break;
    case ending::node_frozen:
        s.signal(0, SIGSTOP);
        break;
    case ending::all_nodes_killed:
        s.signal(0, SIGKILL);
        s.signal(1, SIGKILL);
        s.start();
        seen.starting = steady::now() - end;
        break;
    }
    if (eventually([&] { return !s.is_on(); }, limit)) {
        seen.took = steady::now() - end;
    }
    return seen;
}

// ---- The table --------------------------------------------------------------------------------

struct column {
    std::string name;
    std::map<std::string, std::string> cells; // by key
};

std::string show(std::optional<seconds> took, milliseconds limit) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(2);
    if (took) {
        text << took->count();
    } else {
        text << "on after " << std::setprecision(0) << seconds{limit}.count();
    }
    return text.str();
}

void print(std::vector<column> const& columns) {
    std::cout << "\nseconds from the end of a session to flag off\n\n| what ended |";
    for (auto const& c : columns) {
        std::cout << ' ' << c.name << " |";
    }
    std::cout << "\n|---|";
    for (std::size_t i = 0; i < columns.size(); ++i) {
        std::cout << "---:|";
    }
    for (auto const& way : ways) {
        std::cout << "\n| " << way.title << " |";
        for (auto const& c : columns) {
            auto const cell = c.cells.find(way.key);
            std::cout << ' ' << (cell == c.cells.end() ? "" : cell->second) << " |";
        }
    }
    std::cout << std::endl;
}

void write(std::string const& file, std::vector<column> const& columns) {
    auto json = nlohmann::json::array();
    for (auto const& c : columns) {
        json.push_back({{"name", c.name}, {"seconds", c.cells}});
    }
    std::ofstream{file} << json.dump(2) << '\n';
}

std::vector<column> read(std::string const& file) {
    std::ifstream in{file};
    std::vector<column> columns;
    for (auto const& c : nlohmann::json::parse(in)) {
        columns.push_back({c.at("name"), c.at("seconds")});
    }
    return columns;
}

// ---- Promise P2 -------------------------------------------------------------------------------

// How long presenced may take at the default timings, divided by `part`; a second to notice.
milliseconds promised(ending how, int part) {
    switch (how) {
    case ending::clean_close:
    case ending::client_killed:
        return 1s;
    case ending::client_frozen:
    case ending::path_black_holed:
        return milliseconds{30s} / part + 1s;
    case ending::node_killed:
    case ending::node_frozen:
    case ending::all_nodes_killed: // from when one is back
        break;
    }
    return milliseconds{50s} / part + 1s;
}

struct options {
    std::vector<std::string> cases;
    std::string timings = "both";
    std::string json;
    std::string beside;
    std::vector<std::string> servers; // NAME=COMMAND
    int limit = 120;
};

std::vector<contender> contenders(options const& o) {
    std::vector<contender> all;
    for (auto const& server : o.servers) {
        auto const sign = server.find('=');
        if (sign == 0 || sign == server.npos || sign + 1 == server.size()) {
            throw std::runtime_error{"--server takes NAME=COMMAND, not '" + server + "'"};
        }
        all.push_back({server.substr(0, sign), server.substr(sign + 1)});
    }
    if (all.empty() && o.timings != "tenth") {
        all.push_back({"presenced, default timings", "", 1});
    }
    if (all.empty() && o.timings != "default") {
        all.push_back({"presenced, a tenth", "", 10});
    }
    return all;
}

// `kept` becomes false when presenced broke its promise.
column fill_column(options const& o, contender const& who, bool& kept) {
    column made{who.title, {}};
    std::chrono::seconds const limit{o.limit};
    for (auto const& way : ways) {
        if (!o.cases.empty() &&
            std::find(o.cases.begin(), o.cases.end(), way.key) == o.cases.end()) {
            continue;
        }
        auto const [took, starting] = measure(who, way.how, limit);
        auto const& cell = made.cells[way.key] = show(took, limit);
        std::cout << who.title << ", " << way.title << ": " << cell;
        if (who.command.empty() && (!took || *took - starting > promised(way.how, who.part))) {
            kept = false;
            std::cout << ", promised within " << seconds{promised(way.how, who.part)}.count();
        }
        std::cout << std::endl;
    }
    return made;
}

int run(options const& o) {
    std::vector<column> columns;
    if (!o.beside.empty()) {
        columns = read(o.beside);
    }
    auto kept = true;
    for (auto const& who : contenders(o)) {
        columns.push_back(fill_column(o, who, kept));
    }
    print(columns);
    if (!o.json.empty()) {
        write(o.json, columns);
    }
    return kept ? 0 : 1;
}

constexpr auto usage = R"(usage: ghosts [OPTION VALUE]...

Seconds from the end of a session to its routing flag off.

  --cases KEY,...    only these
  --timings WHICH    of presenced: default, tenth or both
  --json FILE        for the table as JSON
  --beside FILE      JSON of an earlier run, whose columns come first
  --limit SECONDS    after which a case is given up (120)
  --server NAME=COMMAND   another server, instead of presenced
)";

std::vector<std::string> cases_in(std::string const& list) {
    std::vector<std::string> cases;
    std::istringstream parts{list};
    for (std::string key; std::getline(parts, key, ',');) {
        if (std::none_of(std::begin(ways), std::end(ways),
                         [&](auto const& w) { return key == w.key; })) {
            throw std::invalid_argument{"no case is called " + key};
        }
        cases.push_back(key);
    }
    return cases;
}

void set(options& o, std::string const& name, std::string const& value) {
    if (name == "--cases") {
        o.cases = cases_in(value);
    } else if (name == "--timings" && (value == "default" || value == "tenth" || value == "both")) {
        o.timings = value;
    } else if (name == "--json") {
        o.json = value;
    } else if (name == "--beside") {
        o.beside = value;
    } else if (name == "--limit") {
        o.limit = std::stoi(value);
    } else if (name == "--server") {
        o.servers.push_back(value);
    } else {
        throw std::invalid_argument{name + " " + value + " is no option"};
    }
}

} // namespace

int main(int argc, char** argv) {
    options o;
    try {
        std::vector<std::string> const given(argv + 1, argv + argc);
        if (!given.empty() && given.front() == "--help") {
            std::cout << usage;
            return 0;
        }
        for (std::size_t i = 0; i < given.size(); i += 2) {
            set(o, given[i], i + 1 < given.size() ? given[i + 1] : "");
        }
    } catch (std::exception const& e) {
        std::cerr << "ghosts: " << e.what() << '\n' << usage;
        return 2;
    }
    try {
        return run(o);
    } catch (std::exception const& e) {
        std::cerr << "ghosts: " << e.what() << '\n';
        return 1;
    }
}
