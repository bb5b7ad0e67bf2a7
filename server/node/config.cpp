#include "server/node/config.hpp"

#include "base/text.hpp"
#include "db/session/conninfo.hpp"
#include "protocol/origin.hpp"

#include <arpa/inet.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <utility>

extern char** environ;

namespace presenced::server {

namespace {

using std::chrono::milliseconds;
using namespace std::chrono_literals;

constexpr milliseconds longest = std::chrono::hours{24 * 3650};

[[noreturn]] void allow(std::string const& text) {
    throw std::invalid_argument{text};
}

// Items of a comma-separated list; empty items are left out.
std::vector<std::string> split(std::string_view text) {
    std::vector<std::string> items;
    while (!text.empty()) {
        auto const comma = text.find(',');
        if (auto const item = base::trim(text.substr(0, comma)); !item.empty()) {
            items.emplace_back(item);
        }
        text.remove_prefix(comma == text.npos ? text.size() : comma + 1);
    }
    return items;
}

template <class Number>
std::optional<Number> parse_digits(std::string_view text) {
    Number n{};
    auto const end = text.data() + text.size();
    auto const [stop, error] = std::from_chars(text.data(), end, n);
    if (text.empty() || text.front() == '-' || error != std::errc{} || stop != end) {
        return std::nullopt;
    }
    return n;
}

template <class Number>
Number parse_number(std::string_view text, Number least, Number most) {
    auto const n = parse_digits<Number>(text);
    if (!n || *n < least || *n > most) {
        allow("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return *n;
}

// milliseconds::max() when it is longer than these can say.
milliseconds parse_any_duration(std::string_view text) {
    static constexpr auto example = "a number and its unit, such as 250ms, 15s, 5m, 2h or 90d";
    auto const unit_at = text.find_first_not_of("0123456789");
    auto const unit = unit_at == text.npos ? std::string_view{} : text.substr(unit_at);
    auto const number = parse_digits<std::int64_t>(text.substr(0, unit_at));
    milliseconds one{0};
    if (unit == "ms") {
        one = 1ms;
    } else if (unit == "s") {
        one = 1s;
    } else if (unit == "m") {
        one = 1min;
    } else if (unit == "h") {
        one = 1h;
    } else if (unit == "d") {
        one = 24h;
    }
    if (!number || one == 0ms) {
        allow(example);
    }
    return *number > milliseconds::max() / one ? milliseconds::max() : one * *number;
}

// `shown` is how the longest is written.
milliseconds parse_between(std::string_view text, milliseconds least, milliseconds most,
                           std::string const& shown) {
    auto const d = parse_any_duration(text);
    if (d < least || d > most) {
        allow("from " + show_duration(least) + " to " + shown);
    }
    return d;
}

milliseconds parse_timing(std::string_view text, milliseconds least) {
    return parse_between(text, least, 24h, "24h");
}

constexpr std::size_t any_number = 10'000'000;

} // namespace

std::string to_string(endpoint const& e) {
    auto const v6 = e.address.find(':') != e.address.npos;
    return (v6 ? "[" + e.address + "]" : e.address) + ":" + std::to_string(e.port);
}

bool cidr::contains(std::array<std::uint8_t, 16> const& address) const {
    auto const whole = prefix / 8;
    if (!std::equal(network.begin(), network.begin() + whole, address.begin())) {
        return false;
    }
    auto const rest = prefix % 8;
    if (rest == 0) {
        return true;
    }
    auto const mask = 0xffU << (8 - rest) & 0xffU;
    return (network[whole] & mask) == (address[whole] & mask);
}

milliseconds parse_duration(std::string_view text) {
    auto const d = parse_any_duration(text);
    if (d > longest) {
        allow("at most " + show_duration(longest));
    }
    return d;
}

std::vector<endpoint> parse_endpoints(std::string_view text) {
    static constexpr auto example = "address:port, separated by commas, such as 127.0.0.1:8080, "
                                    "[::1]:8080, 0.0.0.0:8080 or localhost:8080";
    std::vector<endpoint> endpoints;
    for (auto const& item : split(text)) {
        auto const colon = item.rfind(':');
        auto const digits =
            colon == item.npos ? std::string_view{} : std::string_view{item}.substr(colon + 1);
        auto const port = parse_digits<std::uint16_t>(digits);
        auto host = item.substr(0, colon);
        if (!port || host.empty()) {
            allow(example);
        }
        if (host == "localhost") {
            endpoints.push_back({"127.0.0.1", *port});
            endpoints.push_back({"::1", *port});
            continue;
        }
        auto family = AF_INET;
        if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
            host = host.substr(1, host.size() - 2);
            family = AF_INET6;
        }
        std::array<std::uint8_t, 16> bytes{};
        if (inet_pton(family, host.c_str(), bytes.data()) != 1) {
            allow(example);
        }
        endpoints.push_back({host, *port});
    }
    if (endpoints.empty()) {
        allow(example);
    }
    return endpoints;
}

cidr parse_cidr(std::string_view text) {
    static constexpr auto example =
        "addresses and blocks, separated by commas, such as 10.0.0.0/8, 192.0.2.7 or fd00::/8";
    auto const slash = text.find('/');
    std::string const host{text.substr(0, slash)};
    cidr block{};
    unsigned width = 128;
    if (std::array<std::uint8_t, 4> v4{}; inet_pton(AF_INET, host.c_str(), v4.data()) == 1) {
        width = 32;
        block.network[10] = block.network[11] = 0xff;
        std::copy(v4.begin(), v4.end(), block.network.begin() + 12);
    } else if (inet_pton(AF_INET6, host.c_str(), block.network.data()) != 1) {
        allow(example);
    }
    auto prefix = std::optional<unsigned>{width};
    if (slash != text.npos) {
        prefix = parse_digits<unsigned>(text.substr(slash + 1));
    }
    if (!prefix || *prefix > width) {
        allow(example);
    }
    block.prefix = *prefix + (128 - width);
    // The bits behind the prefix say nothing; nginx drops them too.
    for (auto bit = block.prefix; bit < 128; ++bit) {
        auto& byte = block.network[bit / 8];
        byte = static_cast<std::uint8_t>(byte & ~(0x80U >> (bit % 8)));
    }
    return block;
}

std::vector<setting> const& settings() {
    static std::vector<setting> const table{
        {"PRESENCED_LISTEN", "--listen", "ADDRESS:PORT,...",
         "Where to listen; [::] takes IPv6 alone (127.0.0.1:8080,[::1]:8080)",
         [](std::string const& text, config& c) {
             c.listen = parse_endpoints(text);
         }},
        {"PRESENCED_HEARTBEAT", "--heartbeat", "DURATION", "How often a lease is renewed (15s)",
         [](std::string const& text, config& c) {
             c.timings.heartbeat = parse_timing(text, 1ms);
         }},
        {"PRESENCED_STALE_AFTER", "--stale-after", "DURATION",
         "Age at which a lease is dead; the database's value counts, `migrate` changes it (45s)",
         [](std::string const& text, config& c) {
             c.stale_after = parse_timing(text, 1ms);
         }},
        {"PRESENCED_SWEEP", "--sweep", "DURATION", "How often stale leases are swept up (5s)",
         [](std::string const& text, config& c) {
             c.timings.sweep = parse_timing(text, 5ms);
         }},
        {"PRESENCED_PING", "--ping", "DURATION", "How often a client gets a ping (3s)",
         [](std::string const& text, config& c) {
             c.timings.ping = parse_timing(text, 1ms);
         }},
        {"PRESENCED_PEER_TIMEOUT", "--peer-timeout", "DURATION",
         "Silence after which a client counts as gone (30s)",
         [](std::string const& text, config& c) {
             c.timings.peer_timeout = parse_timing(text, 3ms);
         }},
        {"PRESENCED_DISCONNECT_GRACE", "--disconnect-grace", "DURATION",
         "How long a connection that was lost without a close keeps its lease (0s)",
         [](std::string const& text, config& c) {
             c.timings.disconnect_grace = parse_timing(text, 0ms);
         }},
        {"PRESENCED_UNREACHABLE_LIMIT", "--unreachable-limit", "DURATION",
         "Time without the database after which clients are sent to other nodes (120s)",
         [](std::string const& text, config& c) {
             c.timings.unreachable_limit = parse_timing(text, 1ms);
         }},
        {"PRESENCED_DRAIN_DELAY", "--drain-delay", "DURATION",
         "On SIGTERM: how long new clients are still taken while /readyz says no (0s)",
         [](std::string const& text, config& c) {
             c.drain_delay = parse_timing(text, 0ms);
         }},
        {"PRESENCED_DRAIN_TIMEOUT", "--drain-timeout", "DURATION",
         "On SIGTERM: how long after that until the process gives up (20s)",
         [](std::string const& text, config& c) {
             c.drain_timeout = parse_timing(text, 1ms);
         }},
        {"PRESENCED_ALLOWED_ORIGINS", "--allowed-origins", "ORIGIN,...",
         "Web pages that may connect besides the host's own: host[:port], *.host, "
         "scheme://host[:port], null, file://, * (none)",
         [](std::string const& text, config& c) {
             c.allowed_origins = split(text);
             if (!std::all_of(c.allowed_origins.begin(), c.allowed_origins.end(),
                              protocol::is_origin_pattern)) {
                 allow("host[:port], *.host[:port], scheme://host[:port], null, file:// or *, "
                       "without a path, separated by commas, such as "
                       "app.example.com,*.example.org:8443,https://app.example.net");
             }
         }},
        {"PRESENCED_CHANNELS", "--channels", "NAME,...",
         "Channel names that mean an agent (AgentChannel,Collavre::AgentChannel)",
         [](std::string const& text, config& c) {
             c.channels = split(text);
             auto const odd = [](std::string const& name) {
                 return name.find_first_of(" \t\r\n\"\\") != name.npos;
             };
             if (c.channels.empty() || std::any_of(c.channels.begin(), c.channels.end(), odd)) {
                 allow("one or more names, separated by commas, such as "
                       "AgentChannel,Collavre::AgentChannel");
             }
         }},
        {"PRESENCED_PATH", "--path", "PATH", "Where clients connect (/cable)",
         [](std::string const& text, config& c) {
             auto const printable = std::all_of(text.begin(), text.end(), [](char ch) {
                 return ch > ' ' && ch < '\x7f' && ch != '?' && ch != '#';
             });
             if (text.empty() || text.front() != '/' || !printable || text == "/healthz" ||
                 text == "/readyz" || text == "/metrics") {
                 allow("a path that begins with /, without ? and #, and is none of /healthz, "
                       "/readyz and /metrics");
             }
             c.path = text;
         }},
        {"PRESENCED_NODE", "--node", "NAME", "This node's name (the host name)",
         [](std::string const& text, config& c) {
             auto const fits = [](char ch) {
                 return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') ||
                        (ch >= '0' && ch <= '9') || std::strchr("._:@-", ch) != nullptr;
             };
             if (text.empty() || text.size() > 255 ||
                 !std::all_of(text.begin(), text.end(), fits)) {
                 allow("1 to 255 letters, digits and . _ : @ -");
             }
             c.node = text;
         }},
        {"PRESENCED_THREADS", "--threads", "N", "Threads that serve clients (the cores)",
         [](std::string const& text, config& c) {
             c.threads = parse_number(text, 1U, 256U);
         }},
        {"PRESENCED_DB_CONNECTIONS", "--db-connections", "N",
         "Connections to the database in all (6)",
         [](std::string const& text, config& c) {
             c.db_connections = parse_number(text, 5U, 36U);
         }},
        {"PRESENCED_MAX_CONNECTIONS", "--max-connections", "N",
         "Clients at a time (what the descriptor limit allows)",
         [](std::string const& text, config& c) {
             c.max_connections = parse_number(text, std::size_t{1}, any_number);
         }},
        {"PRESENCED_MAX_SUBSCRIPTIONS", "--max-subscriptions", "N",
         "Subscriptions of one connection (100)",
         [](std::string const& text, config& c) {
             c.max_subscriptions = parse_number(text, std::size_t{1}, std::size_t{100'000});
         }},
        {"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "--max-connections-per-address", "N",
         "Clients at a time from one address (IPv6: one /64), 0 for any number (0)",
         [](std::string const& text, config& c) {
             c.max_connections_per_address = parse_number(text, std::size_t{0}, any_number);
         }},
        {"PRESENCED_MAX_CONNECTIONS_PER_OWNER", "--max-connections-per-owner", "N",
         "Clients at a time whose tokens have one owner, 0 for any number (0)",
         [](std::string const& text, config& c) {
             c.max_connections_per_owner = parse_number(text, std::size_t{0}, any_number);
         }},
        {"PRESENCED_TRUSTED_PROXIES", "--trusted-proxies", "CIDR,...",
         "Proxies whose X-Forwarded-For and X-Forwarded-Host count (none)",
         [](std::string const& text, config& c) {
             c.trusted_proxies.clear();
             for (auto const& item : split(text)) {
                 c.trusted_proxies.push_back(parse_cidr(item));
             }
         }},
        {"PRESENCED_TRANSITIONS_KEEP", "--transitions-keep", "DURATION",
         "How long the log of flips goes back (90d)",
         [](std::string const& text, config& c) {
             c.transitions_keep = std::chrono::ceil<std::chrono::hours>(
                 parse_between(text, 1h, longest, show_duration(longest)));
         }},
        {"PRESENCED_LOG_LEVEL", "--log-level", "LEVEL", "debug, info, warn or error (info)",
         [](std::string const& text, config& c) {
             if (text == "debug") {
                 c.log.level = log_level::debug;
             } else if (text == "info") {
                 c.log.level = log_level::info;
             } else if (text == "warn") {
                 c.log.level = log_level::warn;
             } else if (text == "error") {
                 c.log.level = log_level::error;
             } else {
                 allow("debug, info, warn or error");
             }
         }},
        {"PRESENCED_LOG_FORMAT", "--log-format", "FORMAT", "text or json (text)",
         [](std::string const& text, config& c) {
             if (text == "text") {
                 c.log.format = log_format::text;
             } else if (text == "json") {
                 c.log.format = log_format::json;
             } else {
                 allow("text or json");
             }
         }},
    };
    return table;
}

namespace {

// A value and what to call it in a message: the name it was given by.
struct given {
    std::string name;
    std::string text;
};

std::optional<given> find_value(config_source const& source, char const* variable,
                                char const* flag) {
    if (auto const it = source.flags.find(flag); it != source.flags.end()) {
        return given{flag, it->second};
    }
    if (auto const it = source.environment.find(variable);
        it != source.environment.end() && !it->second.empty()) {
        return given{variable, it->second};
    }
    return std::nullopt;
}

// Parses the setting if it was given; returns what is wrong with it.
std::optional<std::string> take(config_source const& source, setting const& s, config& into) {
    auto const value = find_value(source, s.variable, s.flag);
    if (!value) {
        return std::nullopt;
    }
    try {
        s.parse(value->text, into);
    } catch (std::invalid_argument const& allowed) {
        return value->name + " is '" + value->text + "'; allowed: " + allowed.what();
    }
    return std::nullopt;
}

[[noreturn]] void refuse(std::vector<std::string> const& problems) {
    std::string lines;
    for (auto const& problem : problems) {
        lines += (lines.empty() ? "" : "\n") + problem;
    }
    throw bad_setting{lines};
}

// One setting alone, for commands that need no more.
config take_one(config_source const& source, std::string_view variable) {
    config value;
    for (auto const& s : settings()) {
        if (s.variable == variable) {
            if (auto const problem = take(source, s, value)) {
                throw bad_setting{*problem};
            }
        }
    }
    return value;
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j) {
        row[j] = j;
    }
    for (std::size_t i = 1; i <= a.size(); ++i) {
        auto diagonal = std::exchange(row[0], i);
        for (std::size_t j = 1; j <= b.size(); ++j) {
            auto const changed = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, changed}));
        }
    }
    return row[b.size()];
}

} // namespace

std::string parse_conninfo(config_source const& source) {
    auto const url = find_value(source, "DATABASE_URL", "--database-url");
    auto const file = find_value(source, "DATABASE_URL_FILE", "--database-url-file");
    auto const is_flag = [](std::optional<given> const& g) {
        return g && g->name.front() == '-';
    };
    if (url && file && is_flag(url) == is_flag(file)) {
        throw bad_setting{url->name + " and " + file->name + " are both set; allowed: one of them"};
    }
    auto const checked = [&](std::string const& conninfo, std::string const& name) {
        if (auto const problem = db::conninfo_problem(conninfo)) {
            throw bad_setting{name + ": " + *problem};
        }
        if (auto const problem = db::environment_problem(conninfo, source.environment)) {
            throw bad_setting{*problem};
        }
        return conninfo;
    };
    if (file && (!url || is_flag(file))) {
        auto const content = source.read_file ? source.read_file(file->text) : std::nullopt;
        if (!content) {
            throw bad_setting{file->name + " is '" + file->text +
                              "'; allowed: a file that can be read and holds a connection string"};
        }
        std::string const conninfo{base::trim(*content)};
        if (conninfo.empty()) {
            throw bad_setting{file->name + " is '" + file->text +
                              "', which is empty; allowed: a file that holds a connection string"};
        }
        return checked(conninfo, file->name);
    }
    if (url) {
        return checked(url->text, url->name);
    }
    for (auto const* variable :
         {"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE"}) {
        if (auto const it = source.environment.find(variable);
            it != source.environment.end() && !it->second.empty()) {
            return checked({}, {});
        }
    }
    throw bad_setting{"DATABASE_URL is not set; allowed: a PostgreSQL connection string such as "
                      "postgresql://user@localhost/presenced, DATABASE_URL_FILE, or PGHOST, "
                      "PGDATABASE, ... (script/server starts a private database)"};
}

std::optional<milliseconds> parse_stale_after(config_source const& source) {
    return take_one(source, "PRESENCED_STALE_AFTER").stale_after;
}

std::vector<endpoint> parse_listen(config_source const& source) {
    return take_one(source, "PRESENCED_LISTEN").listen;
}

std::string parse_path(config_source const& source) {
    return take_one(source, "PRESENCED_PATH").path;
}

config parse_config(config_source const& source) {
    config value;
    value.threads = std::clamp(source.cores, 1U, 256U);
    std::vector<std::string> problems;
    for (auto const& s : settings()) {
        if (auto problem = take(source, s, value)) {
            problems.push_back(std::move(*problem));
        }
    }
    if (value.node.empty()) {
        value.node = source.host_name.empty() ? "presenced" : source.host_name;
    }
    try {
        value.conninfo = parse_conninfo(source);
    } catch (bad_setting const& problem) {
        problems.emplace_back(problem.what());
    }
    if (!problems.empty()) {
        refuse(problems);
    }
    // Without a stale_after of the operator's, the database's decides; what is broken even with
    // a very long one is broken with any.
    auto timings = value.timings;
    timings.stale_after = value.stale_after.value_or(longest);
    if (auto const broken = broken_relations(timings); !broken.empty()) {
        refuse(broken);
    }
    if (value.stale_after) {
        value.timings.stale_after = *value.stale_after;
    }
    return value;
}

presence::settings settle_stale_after(config const& value, milliseconds recorded) {
    if (value.stale_after && *value.stale_after != recorded) {
        throw bad_setting{"PRESENCED_STALE_AFTER is '" + show_duration(*value.stale_after) +
                          "' and the database has recorded " + show_duration(recorded) +
                          ", which all nodes and readers go by; allowed: that value, or none. To "
                          "change it, stop all nodes and run `presenced migrate` with the new one"};
    }
    auto timings = value.timings;
    timings.stale_after = recorded;
    if (auto broken = broken_relations(timings); !broken.empty()) {
        broken.push_back("PRESENCED_STALE_AFTER = " + show_duration(recorded) +
                         " is what the database has recorded; to change it, stop all nodes and run "
                         "`presenced migrate --stale-after` with another one");
        refuse(broken);
    }
    return timings;
}

std::vector<std::string> unknown_variables(config_source const& source) {
    // Of the client, of scripts and of the compose file.
    std::vector<std::string_view> known{"PRESENCED_TOKEN",     "PRESENCED_DATA",
                                        "PRESENCED_PRESET",    "PRESENCED_BINARY",
                                        "PRESENCED_BOOTSTRAP", "PRESENCED_PUBLISH"};
    for (auto const& s : settings()) {
        known.emplace_back(s.variable);
    }
    std::vector<std::string> lines;
    for (auto const& entry : source.environment) {
        auto const& name = entry.first;
        if (!name.starts_with("PRESENCED_") ||
            std::find(known.begin(), known.end(), name) != known.end()) {
            continue;
        }
        auto line = name + " is set, and is no setting of presenced";
        auto const closest = std::min_element(known.begin(), known.end(), [&](auto a, auto b) {
            return edit_distance(name, a) < edit_distance(name, b);
        });
        if (edit_distance(name, *closest) <= 4) {
            line += "; did you mean " + std::string{*closest} + "?";
        }
        lines.push_back(std::move(line));
    }
    return lines;
}

config_source process_source(std::map<std::string, std::string> flags) {
    config_source source;
    source.flags = std::move(flags);
    for (auto entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
        std::string_view const text{*entry};
        if (auto const equals = text.find('='); equals != text.npos) {
            source.environment.emplace(text.substr(0, equals), text.substr(equals + 1));
        }
    }
    std::array<char, HOST_NAME_MAX + 1> name{};
    if (gethostname(name.data(), name.size() - 1) == 0) {
        source.host_name = name.data();
    }
    source.cores = std::max(1U, std::thread::hardware_concurrency());
    source.read_file = [](std::string const& path) -> std::optional<std::string> {
        // A directory opens and then fails to read: `<<` notes that, an iterator would throw.
        std::ifstream file{path, std::ios::binary};
        std::ostringstream content;
        if (!file.is_open() || (file.peek() != file.eof() && !(content << file.rdbuf()))) {
            return std::nullopt;
        }
        return content.str();
    };
    return source;
}

} // namespace presenced::server
