#include "server/cli/commands.hpp"

#include "db/admin/schema.hpp"
#include "server/app/app.hpp"
#include "server/cli/commands_admin.hpp"
#include "server/cli/commands_connect.hpp"
#include "server/cli/commands_health.hpp"
#include "server/node/config.hpp"
#include "server/node/log.hpp"

#include <CLI/CLI.hpp>
#include <spdlog/spdlog.h>

#include <charconv>
#include <exception>
#include <functional>
#include <iostream>
#include <limits>
#include <memory>

namespace presenced::server {

namespace {

constexpr int failure = 1;
constexpr int usage = 2;

void complain(std::string const& lines) {
    std::size_t from = 0;
    while (from <= lines.size()) {
        auto const end = std::min(lines.find('\n', from), lines.size());
        std::cerr << "presenced: " << lines.substr(from, end - from) << '\n';
        from = end + 1;
    }
}

// What the chosen command does, and the flags that are settings.
struct invocation {
    std::function<int(config_source const&)> command;
    std::map<std::string, std::string> flags;
};

CLI::Validator whole_number(std::int64_t least) {
    return CLI::Validator{[least](std::string& text) {
                              std::int64_t n{};
                              auto const end = text.data() + text.size();
                              auto const [stop, error] = std::from_chars(text.data(), end, n);
                              if (error == std::errc{} && stop == end && n >= least) {
                                  return std::string{};
                              }
                              return "is '" + text + "'; allowed: a whole number from " +
                                     std::to_string(least) + " to " +
                                     std::to_string(std::numeric_limits<std::int64_t>::max());
                          },
                          "", "whole number"};
}

std::optional<std::vector<std::int64_t>> ids_in(std::string_view text) {
    std::vector<std::int64_t> ids;
    for (auto const *at = text.data(), *end = at + text.size();; ++at) {
        std::int64_t id{};
        auto const [stop, error] = std::from_chars(at, end, id);
        if (error != std::errc{} || id < 1 || (stop != end && *stop != ',')) {
            return std::nullopt;
        }
        ids.push_back(id);
        if (stop == end) {
            return ids;
        }
        at = stop;
    }
}

// The ids of agents, 1 or greater, with commas between.
CLI::Validator id_list() {
    return CLI::Validator{[](std::string& text) {
                              return ids_in(text) ? std::string{}
                                                  : "is '" + text +
                                                        "'; allowed: ids of agents with commas "
                                                        "between, such as 7 or 7,8";
                          },
                          "", "ids"};
}

CLI::Validator role_name() {
    return CLI::Validator{[](std::string& text) {
                              std::string allowed;
                              for (auto const name : db::role_names) {
                                  allowed += (allowed.empty() ? "" : ", ") + std::string{name};
                              }
                              return db::role_of(text) ? std::string{}
                                                       : "is '" + text + "'; allowed: " + allowed;
                          },
                          "", "role"};
}

CLI::Option* add_setting(CLI::App* to, invocation& into, std::string const& flag,
                         std::string const& variable, std::string const& help) {
    return to
        ->add_option_function<std::string>(
            flag, [&into, flag](std::string const& text) { into.flags[flag] = text; },
            help + (variable.empty() ? "" : "  [" + variable + "]"))
        ->type_name("");
}

void add_setting(CLI::App* to, invocation& into, std::string_view variable) {
    for (auto const& s : settings()) {
        if (s.variable == variable) {
            add_setting(to, into, s.flag, s.variable, s.help)->type_name(s.placeholder);
        }
    }
}

void add_database(CLI::App* to, invocation& into) {
    add_setting(to, into, "--database-url", "DATABASE_URL",
                "PostgreSQL connection string; a password in it belongs into the environment")
        ->type_name("URL");
    add_setting(to, into, "--database-url-file", "DATABASE_URL_FILE",
                "File that holds the connection string")
        ->type_name("FILE");
}

CLI::App* add_command(CLI::App& parent, std::string const& name, std::string const& help,
                      std::string const& examples) {
    auto* const command = parent.add_subcommand(name, help);
    command->footer("Examples:\n" + examples);
    return command;
}

// ---- The commands --------------------------------------------------------------------------

int serve_command(config_source const& source) {
    auto const value = parse_config(source);
    set_up_log(value.log);
    for (auto const& line : unknown_variables(source)) {
        spdlog::warn("config unknown variable: {}", line);
    }
    return serve(value);
}

void add_serve(CLI::App& app, invocation& into) {
    auto* const command = add_command(
        app, "serve", "Serve clients until SIGTERM or SIGINT",
        "  DATABASE_URL=postgresql://presenced@localhost/presenced presenced serve\n"
        "  presenced serve --listen 0.0.0.0:8080,[::]:8080 --log-format json\n"
        "Every flag is also a variable, named in brackets; the flag counts over the variable.\n"
        "Exit codes: 0 drained, 1 failure, 2 a bad setting.");
    add_database(command, into);
    for (auto const& s : settings()) {
        add_setting(command, into, s.variable);
    }
    command->callback([&into] { into.command = serve_command; });
}

void add_migrate(CLI::App& app, invocation& into) {
    auto* const command =
        add_command(app, "migrate", "Bring the database's schema up to date",
                    "  DATABASE_URL=postgresql://owner@localhost/presenced presenced migrate\n"
                    "  presenced migrate --stale-after 60s    # while no node runs");
    add_database(command, into);
    add_setting(command, into, "PRESENCED_STALE_AFTER");
    auto const json = std::make_shared<bool>(false);
    command->add_flag("--json", *json, "Print JSON");
    command->callback([&into, json] {
        into.command = [json](config_source const& source) {
            for (auto const& line : unknown_variables(source)) {
                complain("warning: " + line);
            }
            return migrate_command(source, *json);
        };
    });
}

void add_doctor(CLI::App& app, invocation& into) {
    auto* const command = add_command(
        app, "doctor", "Ask the database whether a node could do its whole work",
        "  DATABASE_URL=postgresql://presenced@localhost/presenced presenced doctor\n"
        "  presenced doctor --json\n"
        "Run it with the DATABASE_URL of `presenced serve`. Each problem comes with its cure.\n"
        "Exit codes: 0, 1 when presence would not be true.");
    auto const json = std::make_shared<bool>(false);
    add_database(command, into);
    command->add_flag("--json", *json, "Print JSON");
    command->callback([&into, json] {
        into.command = [json](config_source const& source) {
            return doctor_command(source, *json);
        };
    });
}

CLI::App* add_group(CLI::App& app, invocation& into, std::string const& name,
                    std::string const& help) {
    auto* const group = app.add_subcommand(name, help);
    group->require_subcommand(0, 1);
    group->callback([&into, group] {
        if (group->get_subcommands().empty()) {
            into.command = [group](config_source const&) {
                std::cerr << group->help("presenced");
                return usage;
            };
        }
    });
    return group;
}

void add_agent(CLI::App& app, invocation& into) {
    auto* const group = add_group(app, into, "agent", "Make and list agents");

    auto* const create = add_command(*group, "create", "Make an agent",
                                     "  presenced agent create --owner 1 --name demo\n"
                                     "  presenced agent create --owner 1 --json | jq .id");
    auto const made = std::make_shared<agent_create_options>();
    add_database(create, into);
    create->add_option("--owner", made->owner, "Whose it is: the owner's id")
        ->required()
        ->type_name("ID")
        ->check(whole_number(1));
    create->add_option("--name", made->name, "What to call it")->type_name("NAME");
    create->add_flag("--json", made->json, "Print JSON");
    create->callback([&into, made] {
        into.command = [made](config_source const& source) {
            return agent_create_command(source, *made);
        };
    });

    auto* const list = add_command(*group, "list", "List all agents",
                                   "  presenced agent list\n  presenced agent list --json");
    auto const json = std::make_shared<bool>(false);
    add_database(list, into);
    list->add_flag("--json", *json, "Print JSON");
    list->callback([&into, json] {
        into.command = [json](config_source const& source) {
            return agent_list_command(source, *json);
        };
    });
}

void add_token(CLI::App& app, invocation& into) {
    auto* const group = add_group(app, into, "token", "Issue, list and revoke access tokens");

    auto* const issue =
        add_command(*group, "issue", "Make a token and print it, this once, alone on stdout",
                    "  presenced token issue --owner 1 --label laptop\n"
                    "  PRESENCED_TOKEN=$(presenced token issue --owner 1 --expires-in 30d)\n"
                    "  presenced token issue --owner 1 --agents 7,8\n"
                    "  presenced token issue --owner 1 --role peer");
    auto const issued = std::make_shared<token_issue_options>();
    add_database(issue, into);
    issue->add_option("--owner", issued->owner, "Whose agents it may connect to: the owner's id")
        ->required()
        ->type_name("ID")
        ->check(whole_number(1));
    issue
        ->add_option_function<std::string>(
            "--role",
            [issued](std::string const& name) { issued->role = db::role_of(name).value(); },
            "What it may do: session, peer, app or admin (session)")
        ->type_name("ROLE")
        ->check(role_name());
    issue
        ->add_option_function<std::string>(
            "--agents",
            [issued](std::string const& list) { issued->agents = ids_in(list).value(); },
            "The agents that it is narrowed to (all of the owner)")
        ->type_name("ID,...")
        ->check(id_list());
    issue->add_option("--label", issued->label, "What it is for")->type_name("TEXT");
    issue
        ->add_option_function<std::string>(
            "--expires-in",
            [issued](std::string const& text) {
                issued->expires_in =
                    std::chrono::duration_cast<std::chrono::seconds>(parse_duration(text));
            },
            "How long it is valid, such as 12h or 30d (until revoked)")
        ->type_name("DURATION")
        ->check(CLI::Validator{[](std::string& text) -> std::string {
                                   try {
                                       if (parse_duration(text) >= std::chrono::seconds{1}) {
                                           return {};
                                       }
                                       return "is '" + text + "'; allowed: 1s or longer";
                                   } catch (std::invalid_argument const& allowed) {
                                       return "is '" + text + "'; allowed: " + allowed.what();
                                   }
                               },
                               "", "duration"});
    issue->add_flag("--json", issued->json, "Print JSON");
    issue->callback([&into, issued] {
        into.command = [issued](config_source const& source) {
            return token_issue_command(source, *issued);
        };
    });

    auto const json = std::make_shared<bool>(false);
    auto* const list = add_command(*group, "list", "List all tokens (not their secrets)",
                                   "  presenced token list\n  presenced token list --json");
    add_database(list, into);
    list->add_flag("--json", *json, "Print JSON");
    list->callback([&into, json] {
        into.command = [json](config_source const& source) {
            return token_list_command(source, *json);
        };
    });

    auto const id = std::make_shared<std::int64_t>(0);
    auto* const revoke =
        add_command(*group, "revoke", "End a token for good", "  presenced token revoke 3");
    add_database(revoke, into);
    revoke->add_option("ID", *id, "The token's id, as `presenced token list` shows it")
        ->required()
        ->type_name("")
        ->check(whole_number(1));
    revoke->add_flag("--json", *json, "Print JSON");
    revoke->callback([&into, id, json] {
        into.command = [id, json](config_source const& source) {
            return token_revoke_command(source, *id, *json);
        };
    });
}

void add_status(CLI::App& app, invocation& into) {
    auto* const command = add_command(app, "status", "Show live agents, their sessions, and nodes",
                                      "  presenced status\n  presenced status --json\n"
                                      "  watch -n1 presenced status");
    auto const json = std::make_shared<bool>(false);
    add_database(command, into);
    command->add_flag("--json", *json, "Print JSON");
    command->callback([&into, json] {
        into.command = [json](config_source const& source) {
            return status_command(source, *json);
        };
    });
}

void add_connect(CLI::App& app, invocation& into) {
    auto* const command = add_command(
        app, "connect", "Connect as a client, subscribe, and print what happens",
        "  PRESENCED_TOKEN=... presenced connect --agent 7\n"
        "  PRESENCED_TOKEN=... presenced connect ws://127.0.0.1:8080/cable --agent 7 --agent 8\n"
        "Ctrl-C closes the connection and exits 0. Exit code 1 when the server refuses.\n"
        "The token comes from PRESENCED_TOKEN alone: flags show in the process list.");
    auto const o = std::make_shared<connect_options>();
    command->add_option("URL", o->url, "ws://HOST:PORT/PATH (from PRESENCED_LISTEN)")
        ->type_name("");
    command->add_option("--agent", o->agents, "Agent to subscribe to; may be given several times")
        ->required()
        ->type_name("ID")
        ->take_all()
        ->allow_extra_args(false)
        ->check(whole_number(1));
    command->add_option("--session-id", o->session_id, "What the session calls itself")
        ->type_name("TEXT")
        ->check(CLI::Validator{[](std::string& text) -> std::string {
                                   return text.size() <= 255
                                              ? std::string{}
                                              : "is too long; allowed: at most 255 bytes";
                               },
                               "", "length"});
    command->add_option("--channel", o->channel, "Channel name (AgentChannel)")->type_name("NAME");
    command->add_flag("--json", o->json, "Print the server's frames as they come, but for pings");
    command->add_flag("--once", o->once, "Do not connect again when the connection is lost");
    command->callback([&into, o] {
        into.command = [o](config_source const& source) {
            return connect_command(source, *o);
        };
    });
}

void add_health(CLI::App& app, invocation& into) {
    auto* const command = add_command(app, "health", "Ask a running server's /healthz",
                                      "  presenced health\n"
                                      "  presenced health --url http://127.0.0.1:8080/readyz\n"
                                      "Exit codes: 0 healthy, 1 not.");
    auto const url = std::make_shared<std::optional<std::string>>();
    command->add_option("--url", *url, "What to ask (/healthz at the addresses of --listen)")
        ->type_name("URL");
    add_setting(command, into, "--listen", "PRESENCED_LISTEN",
                "Where the server listens, as it was told (127.0.0.1:8080,[::1]:8080)")
        ->type_name("ADDRESS:PORT,...");
    auto const json = std::make_shared<bool>(false);
    command->add_flag("--json", *json, "Print JSON");
    command->callback([&into, url, json] {
        into.command = [url, json](config_source const& source) {
            return health_command(source, *url, *json);
        };
    });
}

} // namespace

int run_command_line(int argc, char const* const* argv) {
    CLI::App app{"presenced: a WebSocket presence server for Action Cable clients, on PostgreSQL",
                 "presenced"};
    app.set_version_flag("--version", "presenced " + std::string{db::built_version()});
    app.footer("presenced COMMAND --help says more, with examples.\n"
               "Exit codes: 0, 1 failure, 2 usage or a bad setting.");
    invocation chosen;
    add_serve(app, chosen);
    add_migrate(app, chosen);
    add_doctor(app, chosen);
    add_agent(app, chosen);
    add_token(app, chosen);
    add_status(app, chosen);
    add_connect(app, chosen);
    add_health(app, chosen);
    try {
        app.parse(argc, argv);
    } catch (CLI::CallForHelp const& e) {
        return app.exit(e);
    } catch (CLI::CallForVersion const& e) {
        return app.exit(e);
    } catch (CLI::ParseError const& e) {
        complain(e.what());
        std::cerr << "presenced --help shows the commands, presenced COMMAND --help the options\n";
        return usage;
    }
    if (!chosen.command) {
        std::cerr << app.help();
        return usage;
    }
    try {
        auto const code = chosen.command(process_source(std::move(chosen.flags)));
        std::cout.flush();
        if (!std::cout) {
            complain("the output could not be written");
            return failure;
        }
        return code;
    } catch (bad_setting const& e) {
        complain(e.what());
        return usage;
    } catch (std::exception const& e) {
        complain(e.what());
        return failure;
    }
}

} // namespace presenced::server
