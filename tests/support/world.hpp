// What an end-to-end test lives in: a database of its own on the program's PostgreSQL, agents and
// tokens in it, presenced nodes on it, and clients of theirs.
#pragma once

#include "tests/support/cable.hpp"
#include "tests/support/node.hpp"
#include "tests/support/postgres.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace presenced::tests {

// The defaults times num/den, as environment variables; a tenth makes a test quick, and every
// relation between the timings still holds.
environment timings(int num, int den);
inline environment a_tenth() {
    return timings(1, 10);
}
environment with(environment settings, environment const& more);

// The timings of tests that run in full size, too (tests/support/scale.hpp).
environment scaled_timings();
// A time at the default timings, as it is in this run.
milliseconds scaled(milliseconds at_default);

class world {
public:
    // Migrated, with the stale_after of `settings`, which every node gets.
    explicit world(environment settings = a_tenth(), postgres& server = postgres::shared());

    std::string const& conninfo() const { return conninfo_; }
    // For the test's own questions.
    sql_session& sql() { return sql_; }
    sql_session another_session() const { return sql_session{conninfo_}; }

    std::int64_t add_agent(std::int64_t owner = 1);
    std::vector<std::int64_t> add_agents(std::size_t count, std::int64_t owner = 1);
    // The text of a new access token.
    std::string add_token(std::int64_t owner = 1);
    // One that everybody uses who is not particular, of owner 1.
    std::string const& token() const { return token_; }

    environment node_settings(environment const& more = {}) const;
    // A node that is ready.
    std::unique_ptr<node> start_node(environment const& more = {}) const;
    // `presenced ARGUMENTS...` on this database.
    finished presenced(std::vector<std::string> const& arguments,
                       environment const& more = {}) const;

    clients::cable_client_options client_options(node const& to) const;
    // Connects with the usual token, not waiting for anything.
    std::unique_ptr<cable> connect(node const& to);
    std::unique_ptr<cable> connect(clients::cable_client_options options);
    // ... and has been welcomed. Throws std::runtime_error when it is not.
    std::unique_ptr<cable> session(node const& to);
    std::unique_ptr<cable> session(clients::cable_client_options options);
    // ... and holds a confirmed subscription of this agent.
    std::unique_ptr<cable> subscriber(node const& to, std::int64_t agent);

    bool is_active(std::int64_t agent);
    long rows(std::int64_t agent);
    long rows();
    // Waits for it.
    bool becomes_active(std::int64_t agent, bool active = true, milliseconds limit = patience);
    bool has_rows(std::int64_t agent, long count, milliseconds limit = patience);
    // "on subscribed, off expired": the agent's flips in order.
    std::string transitions(std::int64_t agent);

private:
    environment settings_;
    std::string conninfo_;
    sql_session sql_;
    std::string token_;
    cable_loop loop_;
};

// `{"channel":"AgentChannel","agent_id":7}`, with "session_id" when it is not empty.
std::string identifier(std::int64_t agent, std::string const& session_id = {});
// A client's command as JSON, for those who frame it themselves.
std::string command(std::string const& name, std::string const& identifier);

} // namespace presenced::tests
