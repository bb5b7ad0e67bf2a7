#include "db/session/conninfo.hpp"

#include "base/text.hpp"

#include <libpq-fe.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <memory>
#include <string_view>

namespace presenced::db {

namespace {

struct foreign_parameter {
    std::string_view name;
    std::string_view cure;
};
// What other libraries put into DATABASE_URL. Anything else that libpq does not know is to be
// removed.
constexpr std::array foreign_parameters{
    foreign_parameter{"pool", "a setting of Rails: remove it; PRESENCED_DB_CONNECTIONS says how "
                              "many connections presenced opens"},
    foreign_parameter{"max_connections", "a setting of Rails: remove it; PRESENCED_DB_CONNECTIONS "
                                         "says how many connections presenced opens"},
    foreign_parameter{"connection_limit", "a setting of Prisma: remove it; "
                                          "PRESENCED_DB_CONNECTIONS says how many connections "
                                          "presenced opens"},
    foreign_parameter{"schema_search_path", "a setting of Rails: remove it; "
                                            "options=-csearch_path%3DNAME chooses the schema"},
    foreign_parameter{"schema", "a setting of Prisma: remove it; options=-csearch_path%3DNAME "
                                "chooses the schema"},
    foreign_parameter{"encoding", "a setting of Rails: remove it, or say client_encoding"},
    foreign_parameter{"timeout", "remove it, or say connect_timeout (in seconds)"},
    foreign_parameter{"username", "say user"},
    foreign_parameter{"database", "say dbname"},
    foreign_parameter{"adapter", "a setting of Rails: remove it"},
};

// What libpq takes for a parameter's name may be a part of a password with a ? or a space in it.
bool may_be_of_password(std::string_view conninfo) {
    auto const at = conninfo.rfind('@');
    auto const is_torn = at != conninfo.npos && conninfo.find('?') < at;
    return is_torn || conninfo.find("password") != conninfo.npos;
}

std::string unknown_parameter(std::string const& name, std::string_view conninfo) {
    auto const known = std::find_if(foreign_parameters.begin(), foreign_parameters.end(),
                                    [&](auto const& p) { return p.name == name; });
    if (known == foreign_parameters.end() && may_be_of_password(conninfo)) {
        return "the connection string has a parameter that libpq does not know: remove it (in a "
               "URI ? and @ inside a password are written as %3F and %40; elsewhere a password "
               "with spaces stands in '')";
    }
    return "the connection string has the parameter '" + name + "', which libpq does not know: " +
           (known != foreign_parameters.end() ? std::string{known->cure} : "remove it");
}

// Where user and password of a URI end is the first @, unless a / stands before it. libpq takes
// another one for a part of the host or the database, and shows both in its complaints.
std::optional<std::string> stray_at(std::string_view conninfo) {
    if (!conninfo.starts_with("postgresql://") && !conninfo.starts_with("postgres://")) {
        return std::nullopt;
    }
    auto const rest = conninfo.substr(conninfo.find("://") + 3);
    auto const location = rest.substr(0, rest.find('?'));
    auto const first = location.find('@');
    if (first == location.npos ||
        (location.find('/') > first && location.find('@', first + 1) == location.npos)) {
        return std::nullopt;
    }
    return "the connection string has an @ where libpq takes it for a part of the host or the "
           "database; allowed: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, where @ and / inside "
           "a user, password or database are written as %40 and %2F";
}

// ---- Values ------------------------------------------------------------------------------------

// Parameters whose values libpq reads only when it connects, and then refuses every time. Those
// that differ between its versions are left to it.
struct checked_parameter {
    std::string_view keyword;
    char const* variable;    // libpq's, or none
    std::string_view values; // separated by ", "; empty: a whole number
};
constexpr std::array checked_parameters{
    checked_parameter{"sslmode", "PGSSLMODE",
                      "disable, allow, prefer, require, verify-ca, verify-full"},
    checked_parameter{"gssencmode", "PGGSSENCMODE", "disable, prefer, require"},
    checked_parameter{"channel_binding", "PGCHANNELBINDING", "disable, prefer, require"},
    checked_parameter{"target_session_attrs", "PGTARGETSESSIONATTRS",
                      "any, read-write, primary"}, // presenced writes
    checked_parameter{"connect_timeout", "PGCONNECT_TIMEOUT", {}},
    checked_parameter{"keepalives", nullptr, {}},
    checked_parameter{"keepalives_idle", nullptr, {}},
    checked_parameter{"keepalives_interval", nullptr, {}},
    checked_parameter{"keepalives_count", nullptr, {}},
    checked_parameter{"tcp_user_timeout", nullptr, {}},
};

// The next item of a comma-separated list; the list loses it.
std::string_view take_item(std::string_view& list) {
    auto const end = std::min(list.find(','), list.size());
    auto const item = list.substr(0, end);
    list.remove_prefix(std::min(end + 1, list.size()));
    return item;
}

std::optional<int> whole_number(std::string_view text) {
    text = base::trim(text);
    if (text.starts_with('+')) {
        text.remove_prefix(1);
    }
    int n{};
    auto const [stop, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    return error == std::errc{} && stop == text.data() + text.size() ? std::optional{n}
                                                                     : std::nullopt;
}

bool is_one_of(std::string_view values, std::string_view text) {
    while (!values.empty()) {
        if (base::trim(take_item(values)) == text) {
            return true;
        }
    }
    return false;
}

// "; allowed: ..." when the value is none that libpq takes.
std::optional<std::string> mistake(checked_parameter const& p, std::string_view value,
                                   bool is_secret) {
    if (p.values.empty() ? whole_number(value).has_value() : is_one_of(p.values, value)) {
        return std::nullopt;
    }
    return (is_secret ? std::string{"has a bad value"} : "is '" + std::string{value} + "'") +
           "; allowed: " + std::string{p.values.empty() ? "a whole number" : p.values};
}

// Ports may be several, one a host; an empty one means the default.
std::optional<std::string> port_mistake(std::string_view ports, bool is_secret) {
    while (!ports.empty()) {
        auto const port = base::trim(take_item(ports));
        auto const n = whole_number(port);
        if (port.empty() || (n && *n >= 1 && *n <= 65'535)) {
            continue;
        }
        // What is no number may be the first half of a password that has a `/` in it.
        return (n && !is_secret ? "has the port " + std::to_string(*n)
                                : std::string{"has a port that is none"}) +
               "; allowed: 1 to 65535 (in an URL, / inside a user or password is written as %2F)";
    }
    return std::nullopt;
}

// A `/` in a password that is not escaped tears an URL apart: what stands before it is taken for
// the port, and what is behind it for the database and parameters, up to the host's `@`.
bool may_hold_password(PQconninfoOption const* option) {
    for (; option->keyword != nullptr; ++option) {
        std::string_view const keyword{option->keyword};
        if (option->val != nullptr && keyword != "user" && keyword != "password" &&
            std::string_view{option->val}.find('@') != std::string_view::npos) {
            return true;
        }
    }
    return false;
}

std::optional<std::string> value_problem(PQconninfoOption const* option) {
    constexpr auto subject = "the connection string ";
    bool const is_secret = may_hold_password(option);
    for (; option->keyword != nullptr; ++option) {
        if (option->val == nullptr) {
            continue;
        }
        std::string_view const keyword{option->keyword};
        if (keyword == "port") {
            if (auto const wrong = port_mistake(option->val, is_secret)) {
                return subject + *wrong;
            }
            continue;
        }
        for (auto const& p : checked_parameters) {
            if (p.keyword != keyword) {
                continue;
            }
            if (auto const wrong = mistake(p, option->val, is_secret)) {
                return subject + ("has the parameter '" + std::string{keyword} + "', which ") +
                       *wrong;
            }
        }
    }
    return std::nullopt;
}

// ---- Lists -------------------------------------------------------------------------------------

// A list of hosts, addresses or ports, and who gave it: the string, or a variable.
struct given_list {
    std::string_view items;
    std::string_view from;
};

auto count_of(given_list const& list) {
    return list.items.empty() ? 0 : std::count(list.items.begin(), list.items.end(), ',') + 1;
}

std::string counted(std::ptrdiff_t n, std::string const& noun, std::string const& plural) {
    return std::to_string(n) + ' ' + (n == 1 ? noun : plural);
}

// libpq pairs the items of these lists, and tries no host when they do not pair.
std::optional<std::string> pairing_problem(given_list const& hosts, given_list const& addresses,
                                           given_list const& ports) {
    auto const hosts_of = [](given_list const& list, given_list const& other) {
        return counted(std::max<std::ptrdiff_t>(1, count_of(list)), "host", "hosts") +
               (list.items.empty() || list.from == other.from ? ""
                                                              : " of " + std::string{list.from});
    };
    auto const wanted = count_of(addresses);
    if (wanted > 0 && !hosts.items.empty() && count_of(hosts) != wanted) {
        return std::string{addresses.from} + " has " + counted(wanted, "hostaddr", "hostaddrs") +
               " for " + hosts_of(hosts, addresses) + "; allowed: one for each host";
    }
    auto const& places = wanted > 0 ? addresses : hosts;
    if (auto const n = count_of(ports);
        n > 1 && n != std::max<std::ptrdiff_t>(1, count_of(places))) {
        return std::string{ports.from} + " has " + counted(n, "port", "ports") + " for " +
               hosts_of(places, ports) + "; allowed: one for all hosts, or one for each";
    }
    return std::nullopt;
}

constexpr std::string_view the_string = "the connection string";

// Null when the string does not say.
char const* value_in(PQconninfoOption const* option, std::string_view keyword) {
    for (; option != nullptr && option->keyword != nullptr; ++option) {
        if (option->keyword == keyword) {
            return option->val;
        }
    }
    return nullptr;
}

// Of the string alone. Without a host in it, the variables may name the hosts.
std::optional<std::string> pairing_problem(PQconninfoOption const* option) {
    auto const list = [&](std::string_view keyword) {
        auto const* value = value_in(option, keyword);
        return given_list{value == nullptr ? "" : value, the_string};
    };
    auto const hosts = list("host");
    auto const addresses = list("hostaddr");
    bool const is_open = hosts.items.empty() && addresses.items.empty();
    return is_open ? std::nullopt : pairing_problem(hosts, addresses, list("port"));
}

bool is_letter(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Whether the text is letters, digits and these marks.
bool is_name(std::string_view text, std::string_view marks) {
    return std::all_of(text.begin(), text.end(), [&](char c) {
        return is_letter(c) || (c >= '0' && c <= '9') || marks.find(c) != marks.npos;
    });
}

// The name of the parameter that libpq's message calls unknown; empty for another message.
std::string unknown_in(std::string_view message) {
    if (!message.starts_with("invalid URI query parameter") &&
        !message.starts_with("invalid connection option")) {
        return {};
    }
    auto const opening = message.find('"');
    if (opening == message.npos) {
        return {};
    }
    auto const quoted = message.substr(opening + 1);
    auto const closing = quoted.find('"');
    auto const name = closing == quoted.npos ? std::string_view{} : quoted.substr(0, closing);
    return std::string{is_name(name, "_.-") ? name : ""};
}

// What is before `://`; empty when that is not the name of a scheme.
std::string scheme_of(std::string_view conninfo) {
    auto const end = conninfo.find("://");
    auto const name = end == conninfo.npos ? std::string_view{} : conninfo.substr(0, end);
    return std::string{!name.empty() && is_letter(name[0]) && is_name(name, "+.-") ? name : ""};
}

} // namespace

std::optional<std::string> conninfo_problem(std::string const& conninfo) {
    char* message = nullptr;
    std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> const parsed{
        PQconninfoParse(conninfo.c_str(), &message), &PQconninfoFree};
    std::unique_ptr<char, decltype(&PQfreemem)> const owned{message, &PQfreemem};
    if (parsed) {
        auto problem = value_problem(parsed.get());
        // Before the lists are counted: a stray @ puts a part of a password among hosts or ports.
        problem = problem ? problem : stray_at(conninfo);
        return problem ? problem : pairing_problem(parsed.get());
    }
    // Of libpq's messages only the name of a parameter is repeated: others quote parts of the
    // string, and so of the password.
    std::string const text = message != nullptr ? message : "";
    if (auto const unknown = unknown_in(text); !unknown.empty()) {
        return unknown_parameter(unknown, conninfo);
    }
    if (auto const name = scheme_of(conninfo); !name.empty()) {
        if (name != "postgresql" && name != "postgres") {
            return "the connection string begins with " + name +
                   "://; allowed: postgresql://USER@HOST/DATABASE";
        }
        return "the connection string is no URI that libpq can read; allowed: "
               "postgresql://USER:PASSWORD@HOST:PORT/DATABASE?PARAMETER=VALUE, where %, /, ?, #, @ "
               "and : inside a user or password are written as %25, %2F, %3F, %23, %40 and %3A";
    }
    return "the connection string is none that libpq can read; allowed: "
           "postgresql://USER@HOST/DATABASE, or host=HOST dbname=DATABASE user=USER";
}

std::optional<std::string>
environment_problem(std::string const& conninfo,
                    std::map<std::string, std::string> const& environment) {
    std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> const parsed{
        PQconninfoParse(conninfo.c_str(), nullptr), &PQconninfoFree};
    // A service's file counts over the variables.
    if (environment.contains("PGSERVICE")) {
        return std::nullopt;
    }
    if (value_in(parsed.get(), "service") != nullptr) {
        return std::nullopt;
    }
    auto const is_open = [&](std::string_view keyword) {
        return value_in(parsed.get(), keyword) == nullptr;
    };
    auto const value_of = [&](char const* variable) -> char const* {
        auto const it = environment.find(variable);
        return it == environment.end() ? nullptr : it->second.c_str();
    };
    if (auto const* ports = value_of("PGPORT"); ports != nullptr && is_open("port")) {
        if (port_mistake(ports, false)) {
            return "PGPORT is '" + std::string{ports} + "'; allowed: 1 to 65535";
        }
    }
    for (auto const& p : checked_parameters) {
        auto const* value = p.variable == nullptr ? nullptr : value_of(p.variable);
        if (value == nullptr || !is_open(p.keyword)) {
            continue;
        }
        if (auto const wrong = mistake(p, value, false)) {
            return std::string{p.variable} + ' ' + *wrong;
        }
    }
    auto const list = [&](std::string_view keyword, char const* variable) {
        if (auto const* value = value_in(parsed.get(), keyword)) {
            return given_list{value, the_string};
        }
        auto const* value = value_of(variable);
        return given_list{value == nullptr ? "" : value, variable};
    };
    return pairing_problem(list("host", "PGHOST"), list("hostaddr", "PGHOSTADDR"),
                           list("port", "PGPORT"));
}

std::string in_one_line(std::string_view message) {
    std::string line;
    std::string between; // what is owed before the next word
    for (auto const c : message) {
        if (c == '\n') {
            between = "; ";
        } else if (c == '\t' || c == '\r' || c == ' ') {
            between = between.empty() ? " " : between;
        } else {
            line += line.empty() ? "" : between;
            line += c == '"' ? '\'' : c;
            between.clear();
        }
    }
    return line;
}

std::string without_secrets(std::string message, std::vector<std::string> const& secrets) {
    for (auto const& secret : secrets) {
        if (secret.empty()) {
            continue;
        }
        for (auto at = message.find(secret); at != std::string::npos;
             at = message.find(secret, at)) {
            message.replace(at, secret.size(), "***");
            at += 3;
        }
    }
    return in_one_line(message);
}

} // namespace presenced::db
