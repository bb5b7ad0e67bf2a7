// The commands that work on the database: migrate, doctor, agent, token, status. Data goes to
// stdout, hints to stderr. Each returns its exit code; bad_setting, db::schema_error and
// db::unreachable_error come out as exceptions.
#pragma once

#include "db/store/token_grant.hpp"
#include "server/node/config.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace presenced::server {

int migrate_command(config_source const& source, bool json);

// 1 when presence would not be true.
int doctor_command(config_source const& source, bool json);

struct agent_create_options {
    std::int64_t owner = 0;
    std::string name;
    bool json = false;
};
int agent_create_command(config_source const& source, agent_create_options const& options);
int agent_list_command(config_source const& source, bool json);

struct token_issue_options {
    std::int64_t owner = 0;
    db::token_role role = db::token_role::session;
    std::vector<std::int64_t> agents; // none: all of the owner
    std::string label;
    std::optional<std::chrono::seconds> expires_in;
    bool json = false;
};
int token_issue_command(config_source const& source, token_issue_options const& options);
int token_list_command(config_source const& source, bool json);
int token_revoke_command(config_source const& source, std::int64_t id, bool json);

int status_command(config_source const& source, bool json);

} // namespace presenced::server
