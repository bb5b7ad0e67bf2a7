// presenced-bench: loads a presence server over its socket, or the store directly, and prints what
// it measured as one JSON object.
#include "bench/hold.hpp"
#include "bench/renewals.hpp"
#include "bench/scenarios.hpp"

#include <CLI/CLI.hpp>

#include <fstream>
#include <iostream>
#include <stdexcept>

#include <sys/resource.h>

namespace {

using namespace presenced::bench;

std::vector<identity> read_identities(std::string const& file) {
    std::ifstream lines{file};
    std::vector<identity> all;
    for (identity one; lines >> one.token >> one.agent;) {
        all.push_back(one);
    }
    if (all.empty()) {
        throw std::runtime_error{file + " has no line like `TOKEN AGENT`"};
    }
    return all;
}

std::map<std::string, pid_t> read_processes(std::vector<std::string> const& texts) {
    std::map<std::string, pid_t> all;
    for (auto const& text : texts) {
        auto const equals = text.find('=');
        if (equals == text.npos) {
            throw std::runtime_error{"--measure takes NAME=PID"};
        }
        all[text.substr(0, equals)] = std::stoi(text.substr(equals + 1));
    }
    return all;
}

// A session is a descriptor.
void need_descriptors(std::size_t sessions) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < sessions + 64) {
        throw std::runtime_error{"one process may have " + std::to_string(limit.rlim_cur) +
                                 " descriptors here: fewer sessions, or several drivers"};
    }
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app{"Loads a presence server on loopback and prints what it measured as JSON."};
    app.require_subcommand(1);
    std::string url = "ws://127.0.0.1:8080/cable";
    std::string identities;
    std::string database;
    std::vector<std::string> measured;
    std::size_t limit = 120;
    std::size_t hold = 30;
    plan p;

    auto const loads = [&](char const* name, char const* help) {
        auto* const c = app.add_subcommand(name, help);
        c->add_option("--url", url, "ws://127.x.x.x:PORT/PATH")->capture_default_str();
        c->add_option("--identities", identities, "file with a line `TOKEN AGENT` a session")
            ->required();
        c->add_option("--sessions", p.sessions, "how many")->capture_default_str();
        c->add_option("--upgrading", p.limits.upgrading, "how many may be upgrading at a time")
            ->capture_default_str();
        c->add_option("--limit", limit, "seconds for all to come in")->capture_default_str();
        c->add_option("--hold", hold, "seconds that idle and churn last")->capture_default_str();
        c->add_option("--measure", measured, "NAME=PID: a process (tree) whose cost to tell");
        c->add_option("--database", database, "URL of the database, for its counters");
        return c;
    };
    auto* const is_storm = loads("storm", "all at once");
    auto* const is_avalanche = loads("avalanche", "all lost and back at once");
    auto* const is_idle = loads("idle", "all confirmed, doing nothing");
    auto* const is_churn = loads("churn", "some come and as many go");
    is_churn->add_option("--per-second", p.per_second, "joins, and as many leaves");
    auto* const is_lone = loads("lone", "one at a time on an idle server");
    is_lone->add_option("--rounds", p.rounds, "how often");

    renewal_plan renewals;
    auto* const is_renew = app.add_subcommand("renew", "the store alone, renewing leases");
    is_renew->add_option("--database", renewals.database, "URL; migrated, with agents")->required();
    is_renew->add_option("--sessions", renewals.leases, "how many leases")->capture_default_str();
    is_renew->add_option("--postgres", renewals.postgres, "PID of the database server");
    is_renew->add_option("--rounds", renewals.rounds, "renewals of each")->capture_default_str();
    is_renew->add_flag("--old-snapshot", renewals.old_snapshot,
                       "while a snapshot is open that is 40 renewals old (ten minutes)");

    hold_plan holding;
    std::size_t length = 60;
    auto* const is_hold =
        app.add_subcommand("hold", "stores alone: leases renewed every 15 s, and flips meanwhile");
    is_hold->add_option("--database", holding.database, "URL; migrated, with agents")->required();
    is_hold->add_option("--sessions", holding.leases, "how many leases")->capture_default_str();
    is_hold->add_option("--nodes", holding.nodes, "stores that share them")->capture_default_str();
    is_hold->add_option("--hold", length, "seconds")->capture_default_str();
    is_hold->add_option("--postgres", holding.postgres, "PID of the database server");

    try {
        app.parse(argc, argv);
        json result;
        if (is_renew->parsed()) {
            result = renew(renewals);
        } else if (is_hold->parsed()) {
            holding.length = std::chrono::seconds{length};
            result = presenced::bench::hold(holding);
        } else {
            p.to = target::parse(url);
            p.identities = read_identities(identities);
            p.limit = std::chrono::seconds{limit};
            p.hold = std::chrono::seconds{hold};
            p.processes = read_processes(measured);
            if (!database.empty()) {
                p.database = database;
            }
            need_descriptors(p.sessions);
            result = is_storm->parsed()       ? storm(p)
                     : is_avalanche->parsed() ? avalanche(p)
                     : is_idle->parsed()      ? idle(p)
                     : is_churn->parsed()     ? churn(p)
                     : is_lone->parsed()      ? lone(p)
                                              : json{};
        }
        std::cout << result.dump(2) << '\n';
        return 0;
    } catch (CLI::ParseError const& e) {
        return app.exit(e);
    } catch (std::exception const& e) {
        std::cerr << "presenced-bench: " << e.what() << '\n';
        return 1;
    }
}
