// The settings of the server, from flags and environment. docs/operations.md lists them.
#pragma once

#include "base/time.hpp"
#include "presence/settings.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::server {

// As a setting takes it, and as messages show it.
using base::show_duration;

// Where to listen, or where to connect to.
struct endpoint {
    std::string address; // IPv4 or IPv6, without brackets
    std::uint16_t port;  // 0: whichever is free

    bool operator==(endpoint const&) const = default;
};
// `127.0.0.1:8080`, `[::1]:8080`.
std::string to_string(endpoint const& e);

// A block of addresses. IPv4 is kept as IPv4-mapped IPv6 (::ffff:a.b.c.d, RFC 4291 2.5.5.2), the
// prefix counted in these 128 bits.
struct cidr {
    std::array<std::uint8_t, 16> network;
    unsigned prefix;

    bool contains(std::array<std::uint8_t, 16> const& address) const;
    bool operator==(cidr const&) const = default;
};

enum class log_level : std::uint8_t { debug, info, warn, error };
enum class log_format : std::uint8_t { text, json };

struct log_settings {
    log_level level = log_level::info;
    log_format format = log_format::text;
};

struct config {
    std::vector<endpoint> listen{{"127.0.0.1", 8080}, {"::1", 8080}};
    // stale_after: 45 s until settle_stale_after() has put the database's value in.
    presence::settings timings;
    // What the operator gave, if anything.
    std::optional<std::chrono::milliseconds> stale_after;
    // From the signal until new upgrades are refused.
    std::chrono::milliseconds drain_delay{0};
    // From then until the process gives up and exits.
    std::chrono::milliseconds drain_timeout{20'000};
    // Pages that may connect besides those of the host itself, as protocol::is_origin_pattern()
    // takes them.
    std::vector<std::string> allowed_origins;
    std::vector<std::string> channels{"AgentChannel", "Collavre::AgentChannel"};
    std::string path = "/cable";
    std::string node;     // default: the host name
    unsigned threads = 1; // shards; default: the cores
    // Connections to the database in all; nothing: as many as it needs.
    std::optional<unsigned> db_connections;
    // Nothing: what the descriptor limit allows.
    std::optional<std::size_t> max_connections;
    std::size_t max_subscriptions = 100;          // a connection
    std::size_t max_connections_per_address = 0;  // 0: any number
    std::size_t max_connections_per_owner = 0;    // 0: any number
    std::vector<cidr> trusted_proxies;            // whose X-Forwarded-For/-Host count
    std::chrono::hours transitions_keep{90 * 24}; // how long the attendance log goes back
    log_settings log;
    // libpq connection string or URI; empty: libpq's own environment (PGHOST ...).
    std::string conninfo;

    // How many of the database connections write transitions: all but the four that have other
    // work (busy agents, renewals, look-ups, sweeps).
    unsigned transition_lanes() const { return db_connections ? *db_connections - 4 : 2; }
};

// A setting that cannot be used: the operator's to solve, exit 2. what() has one line for each,
// with the setting, the value and what is allowed.
class bad_setting : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// One setting by its names. `parse` puts a value into a config and throws std::invalid_argument
// with what is allowed instead.
struct setting {
    char const* variable;    // "PRESENCED_LISTEN"
    char const* flag;        // "--listen"
    char const* placeholder; // "ADDRESS:PORT,..."
    char const* help;        // one line, with the default
    void (*parse)(std::string const& text, config& into);
};
// Every setting of `serve` but the database's.
std::vector<setting> const& settings();

// Where values come from: all that parsing may look at.
struct config_source {
    std::map<std::string, std::string> environment;
    std::map<std::string, std::string> flags; // by flag: {"--listen", "..."}
    std::string host_name;
    unsigned cores = 1;
    // A file's content, nothing when it cannot be read.
    std::function<std::optional<std::string>(std::string const& path)> read_file;
};
// This process's environment and machine.
config_source process_source(std::map<std::string, std::string> flags);

// Flags count over environment; a variable that is set to nothing counts as not set.
// Everything that can be known without the database is checked. Throws bad_setting.
config parse_config(config_source const& source);

// Parts of it, for the commands that need no more. Throw bad_setting.
std::string parse_conninfo(config_source const& source);
std::optional<std::chrono::milliseconds> parse_stale_after(config_source const& source);
std::vector<endpoint> parse_listen(config_source const& source);
std::string parse_path(config_source const& source);

// The timings with what the database has recorded in them. Throws bad_setting when the operator
// gave another stale_after, or when a promise cannot be kept with these timings.
presence::settings settle_stale_after(config const& value, std::chrono::milliseconds recorded);

// Variables that look like settings and are none: a line each, with what may have been meant.
std::vector<std::string> unknown_variables(config_source const& source);

// Parsers of single values; throw std::invalid_argument with what is allowed.
std::chrono::milliseconds parse_duration(std::string_view text);
std::vector<endpoint> parse_endpoints(std::string_view text);
cidr parse_cidr(std::string_view text);

} // namespace presenced::server
