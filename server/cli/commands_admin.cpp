#include "server/cli/commands_admin.hpp"

#include "base/text.hpp"
#include "base/time.hpp"
#include "db/admin/admin.hpp"
#include "db/admin/doctor.hpp"

#include <nlohmann/json.hpp>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <vector>

namespace presenced::server {

namespace {

using json_value = nlohmann::ordered_json;
using std::chrono::milliseconds;

constexpr std::size_t token_bytes = 32;

// ---- Text for a person -----------------------------------------------------------------------

// A cell of a table: what others supplied, fit for a terminal.
std::string cell(std::string_view text, std::size_t width) {
    auto const shown = base::printable(base::shortened(text, width));
    return shown.empty() ? "-" : shown;
}

std::string show_age(std::optional<milliseconds> const& age, char const* suffix) {
    return age ? base::show_age(*age) + suffix : "-";
}

using text_row = std::vector<std::string>;

// Columns as wide as their widest entry, two spaces between.
void print_table(std::vector<text_row> const& rows) {
    std::vector<std::size_t> widths(rows.front().size());
    for (auto const& row : rows) {
        for (std::size_t i = 0; i < row.size(); ++i) {
            widths[i] = std::max(widths[i], base::character_count(row[i]));
        }
    }
    for (auto const& row : rows) {
        std::string line = " ";
        for (std::size_t i = 0; i < row.size(); ++i) {
            line += " " + row[i];
            if (i + 1 < row.size()) {
                line.append(widths[i] - base::character_count(row[i]) + 1, ' ');
            }
        }
        std::cout << line << '\n';
    }
}

// ---- JSON ------------------------------------------------------------------------------------

json_value or_null(std::string const& text) {
    return text.empty() ? json_value(nullptr) : json_value(text); // braces would make a list
}

json_value or_null(std::optional<milliseconds> const& age) {
    return age ? json_value(age->count()) : json_value(nullptr);
}

void print(json_value const& value) {
    // A database in SQL_ASCII may hold what is not UTF-8. The escapes of printable() are JSON's.
    std::istringstream text{value.dump(2, ' ', false, json_value::error_handler_t::replace)};
    for (std::string line; std::getline(text, line);) {
        std::cout << base::printable(line) << '\n';
    }
}

json_value to_json(db::agent_row const& a) {
    return {{"id", a.id},
            {"owner_id", a.owner},
            {"name", a.name},
            {"routing_active", a.routing_active},
            {"routing_changed_at", or_null(a.routing_changed_at)},
            {"created_at", a.created_at},
            {"sessions", a.sessions}};
}

json_value to_json(db::token_row const& t) {
    return {{"id", t.id},
            {"owner_id", t.owner},
            {"role", t.role},
            {"agents", t.agents == nullptr ? json_value(nullptr) : json_value(*t.agents)},
            {"label", t.label},
            {"state", t.state},
            {"created_at", t.created_at},
            {"expires_at", or_null(t.expires_at)},
            {"revoked_at", or_null(t.revoked_at)}};
}

json_value to_json(db::session_row const& s) {
    return {{"agent_id", s.agent},      {"session_id", or_null(s.session_id)},
            {"node", s.node},           {"boot_id", or_null(s.boot_id)},
            {"age_ms", or_null(s.age)}, {"last_seen_ms", or_null(s.last_seen)}};
}

json_value to_json(db::node_row const& n) {
    return {{"node", n.node},
            {"boot_id", n.boot_id},
            {"version", n.version},
            {"up_ms", or_null(n.up)},
            {"sessions", n.shares_name ? json_value(nullptr) : json_value(n.sessions)},
            {"since_tick_ms", or_null(n.since_tick)},
            {"gone", n.gone},
            {"shares_name", n.shares_name}};
}

template <class Rows>
json_value list_to_json(Rows const& rows) {
    auto list = json_value::array();
    for (auto const& row : rows) {
        list.push_back(to_json(row));
    }
    return list;
}

// ---- Tokens ----------------------------------------------------------------------------------

// 256 random bits as base64url (RFC 4648 section 5, no padding): fits an URL and a shell.
std::string mint_token() {
    std::array<unsigned char, token_bytes> random{};
    if (RAND_bytes(random.data(), static_cast<int>(random.size())) != 1) {
        throw std::runtime_error{"OpenSSL has no random bytes to give"};
    }
    constexpr auto digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    std::string text;
    unsigned bits = 0;
    unsigned held = 0;
    for (auto const byte : random) {
        bits = bits << 8 | byte;
        for (held += 8; held >= 6; held -= 6) {
            text += digits[bits >> (held - 6) & 63U];
        }
    }
    text += digits[bits << (6 - held) & 63U];
    return text;
}

db::token_digest digest_of(std::string const& token) {
    db::token_digest digest{};
    SHA256(reinterpret_cast<unsigned char const*>(token.data()), token.size(), digest.data());
    return digest;
}

// "all", "none", or the ids as --agents takes them.
std::string show_agents(db::agent_list const& agents) {
    if (agents == nullptr) {
        return "all";
    }
    std::string text;
    for (auto const agent : *agents) {
        text += (text.empty() ? "" : ",") + std::to_string(agent);
    }
    return text.empty() ? "none" : text;
}

// ---- Status ----------------------------------------------------------------------------------

// A crash loop leaves boots by the thousand; these many of a name are shown when they are gone.
constexpr std::size_t gone_boots_shown = 3;

void print_nodes(std::vector<db::node_row> const& nodes) {
    std::vector<text_row> rows{{"NODE", "BOOT", "VERSION", "UP", "LAST TICK", "SESSIONS"}};
    std::map<std::string, std::size_t> gone;
    for (auto const& n : nodes) { // of each name the newest first
        if (n.gone && ++gone[n.node] > gone_boots_shown && n.sessions == 0) {
            continue;
        }
        rows.push_back({cell(n.node, 40), cell(n.boot_id, 16), n.version,
                        n.gone ? "gone" : show_age(n.up, ""), show_age(n.since_tick, " ago"),
                        n.shares_name ? "?" : std::to_string(n.sessions)});
    }
    print_table(rows);
    if (auto const left_out = nodes.size() + 1 - rows.size(); left_out > 0) {
        std::cout << "  ... and " << left_out << " more that are gone; --json has them all\n";
    }
}

void warn_of_shared_names(std::vector<db::node_row> const& nodes) {
    std::map<std::string, int> processes;
    for (auto const& n : nodes) {
        processes[n.node] += n.shares_name ? 1 : 0;
    }
    for (auto const& [name, count] : processes) {
        if (count > 0) {
            std::cout << "\nWarning: " << count << " processes run as node " << cell(name, 40)
                      << ", and nobody can tell whose sessions are whose.\n"
                         "Give each of them a PRESENCED_NODE of its own.\n";
        }
    }
}

void print_status(db::status_report const& report) {
    if (!report.presence_known) {
        std::cout << "Presence is not known: no node has ticked for stale_after. The flags below "
                     "are the last ones\nwritten and say nothing about now; start a node with "
                     "`presenced serve`.\n\n";
    }
    if (report.agents.empty()) {
        std::cout << "No agent is live.\n";
    } else {
        std::cout << "Agents\n";
        std::vector<text_row> rows{{"ID", "NAME", "OWNER", "ROUTING", "SINCE", "SESSIONS"}};
        for (auto const& a : report.agents) {
            std::string const flag = a.routing_active ? "on" : "off";
            rows.push_back({std::to_string(a.id), cell(a.name, 32), std::to_string(a.owner),
                            report.presence_known ? flag : "unknown (" + flag + ")",
                            cell(a.routing_changed_at, 32), std::to_string(a.sessions)});
        }
        print_table(rows);
    }
    if (!report.sessions.empty()) {
        std::cout << "\nSessions\n";
        std::vector<text_row> rows{{"AGENT", "SESSION", "NODE", "BOOT", "SUBSCRIBED", "LAST SEEN"}};
        for (auto const& s : report.sessions) {
            rows.push_back({std::to_string(s.agent), cell(s.session_id, 40), cell(s.node, 40),
                            cell(s.boot_id, 16), show_age(s.age, " ago"),
                            show_age(s.last_seen, " ago")});
        }
        print_table(rows);
    }
    if (report.nodes.empty()) {
        std::cout << "\nNo node runs on this database: `presenced serve` starts one.\n";
    } else {
        std::cout << "\nNodes\n";
        print_nodes(report.nodes);
        warn_of_shared_names(report.nodes);
    }
}

} // namespace

int migrate_command(config_source const& source, bool json) {
    auto const stale_after = parse_stale_after(source);
    auto const report = db::migrate(parse_conninfo(source), stale_after);
    try {
        settle_stale_after(parse_config(source), report.stale_after);
    } catch (bad_setting const& problem) {
        std::cerr << "presenced: warning: a node with the settings of this environment would not "
                     "start:\n"
                  << problem.what() << '\n';
    }
    for (auto const& warning : report.warnings) {
        std::cerr << "presenced: warning: " << warning << '\n';
    }
    if (json) {
        print({{"applied", report.applied},
               {"mended", report.mended},
               {"stale_after_ms", report.stale_after.count()}});
        return 0;
    }
    for (auto const& name : report.applied) {
        std::cout << "applied " << name << '\n';
    }
    if (report.applied.empty()) {
        std::cout << "nothing to apply, the schema is up to date\n";
    }
    for (auto const& name : report.mended) {
        std::cout << "mended sequence " << name << ", which was behind the rows of its table\n";
    }
    std::cout << "stale_after is " << show_duration(report.stale_after) << '\n';
    return 0;
}

int doctor_command(config_source const& source, bool json) {
    auto const problems = db::examine(parse_conninfo(source));
    bool const is_true = std::none_of(problems.begin(), problems.end(), [](auto const& p) {
        return p.how_bad == db::problem::weight::error;
    });
    if (json) {
        auto list = json_value::array();
        for (auto const& p : problems) {
            list.push_back(
                {{"weight", p.how_bad == db::problem::weight::error ? "error" : "warning"},
                 {"problem", p.what},
                 {"cure", or_null(p.cure)}});
        }
        print({{"presence_would_be_true", is_true}, {"problems", list}});
        return is_true ? 0 : 1;
    }
    for (auto const& p : problems) {
        std::cout << (p.how_bad == db::problem::weight::error ? "error: " : "warning: ") << p.what
                  << '\n';
        if (!p.cure.empty()) {
            std::cout << "  cure: " << p.cure << '\n';
        }
    }
    if (problems.empty()) {
        std::cout << "nothing is wrong: a node with this connection string can do its whole work\n";
    }
    return is_true ? 0 : 1;
}

int agent_create_command(config_source const& source, agent_create_options const& options) {
    db::admin admin{parse_conninfo(source)};
    auto const agent = admin.create_agent(options.owner, options.name);
    if (options.json) {
        print(to_json(agent));
    } else {
        std::cout << "agent " << agent.id << " of owner " << agent.owner << '\n';
    }
    return 0;
}

int agent_list_command(config_source const& source, bool json) {
    db::admin admin{parse_conninfo(source)};
    auto const agents = admin.agents();
    if (json) {
        print(list_to_json(agents));
        return 0;
    }
    if (agents.empty()) {
        std::cerr << "There are no agents yet: presenced agent create --owner 1 --name demo\n";
        return 0;
    }
    std::vector<text_row> rows{
        {"ID", "NAME", "OWNER", "ROUTING", "CHANGED", "SESSIONS", "CREATED"}};
    for (auto const& a : agents) {
        rows.push_back({std::to_string(a.id), cell(a.name, 32), std::to_string(a.owner),
                        a.routing_active ? "on" : "off", cell(a.routing_changed_at, 32),
                        std::to_string(a.sessions), a.created_at});
    }
    print_table(rows);
    return 0;
}

int token_issue_command(config_source const& source, token_issue_options const& options) {
    db::admin admin{parse_conninfo(source)};
    auto const token = mint_token();
    auto const row = admin.issue_token({options.owner, options.role, options.agents, options.label,
                                        digest_of(token), options.expires_in});
    if (options.json) {
        auto value = to_json(row);
        value["token"] = token;
        print(value);
    } else {
        std::cout << token << std::endl;
        std::cerr << "Token " << row.id << " of owner " << row.owner << ", role " << row.role
                  << ", agents " << show_agents(row.agents)
                  << (row.expires_at.empty() ? ", valid until revoked" : ", valid until ")
                  << row.expires_at << ". It is shown this once; what is kept is its SHA-256.\n"
                  << "  PRESENCED_TOKEN=... presenced connect --agent ID\n";
    }
    return 0;
}

int token_list_command(config_source const& source, bool json) {
    db::admin admin{parse_conninfo(source)};
    auto const tokens = admin.tokens();
    if (json) {
        print(list_to_json(tokens));
        return 0;
    }
    if (tokens.empty()) {
        std::cerr << "There are no tokens yet: presenced token issue --owner 1\n";
        return 0;
    }
    std::vector<text_row> rows{
        {"ID", "OWNER", "ROLE", "AGENTS", "LABEL", "STATE", "CREATED", "EXPIRES", "REVOKED"}};
    for (auto const& t : tokens) {
        rows.push_back({std::to_string(t.id), std::to_string(t.owner), cell(t.role, 16),
                        cell(show_agents(t.agents), 32), cell(t.label, 40), t.state, t.created_at,
                        cell(t.expires_at, 32), cell(t.revoked_at, 32)});
    }
    print_table(rows);
    return 0;
}

int token_revoke_command(config_source const& source, std::int64_t id, bool json) {
    db::admin admin{parse_conninfo(source)};
    auto const token = admin.revoke_token(id);
    if (!token) {
        std::cerr << "presenced: there is no token " << id << "; `presenced token list` shows "
                  << "which there are\n";
        return 1;
    }
    if (json) {
        print(to_json(*token));
    } else {
        std::cout << "token " << token->id << " revoked at " << token->revoked_at << '\n';
    }
    return 0;
}

int status_command(config_source const& source, bool json) {
    db::admin admin{parse_conninfo(source)};
    auto const report = admin.status();
    if (json) {
        print({{"presence_known", report.presence_known},
               {"agents", list_to_json(report.agents)},
               {"sessions", list_to_json(report.sessions)},
               {"nodes", list_to_json(report.nodes)}});
    } else {
        print_status(report);
    }
    return 0;
}

} // namespace presenced::server
