#include "tests/support/world.hpp"

#include "tests/support/scale.hpp"

#include <nlohmann/json.hpp>

#include <atomic>
#include <stdexcept>

namespace presenced::tests {

environment timings(int num, int den) {
    auto const scaled = [&](int default_ms) {
        return std::to_string(default_ms * num / den) + "ms";
    };
    return {{"PRESENCED_HEARTBEAT", scaled(15'000)},
            {"PRESENCED_STALE_AFTER", scaled(45'000)},
            {"PRESENCED_SWEEP", scaled(5'000)},
            {"PRESENCED_PING", scaled(3'000)},
            {"PRESENCED_PEER_TIMEOUT", scaled(30'000)}};
}

environment scaled_timings() {
    return is_full_size() ? timings(1, 1) : a_tenth();
}

milliseconds scaled(milliseconds at_default) {
    return is_full_size() ? at_default : at_default / 10;
}

environment with(environment settings, environment const& more) {
    for (auto const& [name, value] : more) {
        settings[name] = value;
    }
    return settings;
}

world::world(environment settings, postgres& server)
    : settings_{std::move(settings)}
    , conninfo_{server.create_database()}
    , sql_{conninfo_} {
    settings_["DATABASE_URL"] = conninfo_;
    if (auto const done = presenced({"migrate"}); done.code != 0) {
        throw std::runtime_error{"presenced migrate: " + done.errors};
    }
    token_ = add_token();
}

std::int64_t world::add_agent(std::int64_t owner) {
    return add_agents(1, owner).front();
}

std::vector<std::int64_t> world::add_agents(std::size_t count, std::int64_t owner) {
    std::vector<std::int64_t> agents;
    for (auto const& row :
         sql_.query("INSERT INTO agents (owner_id) SELECT " + std::to_string(owner) +
                    " FROM generate_series(1, " + std::to_string(count) + ") RETURNING id")) {
        agents.push_back(std::stoll(row.front()));
    }
    return agents;
}

std::string world::add_token(std::int64_t owner) {
    static std::atomic<int> counter{0};
    auto token = "secret-" + std::to_string(++counter) + "-oGh4iefu9Sahp8aiNgei";
    // As another program would write it: everything else has a default.
    sql_.query("INSERT INTO access_tokens (token_sha256, owner_id) VALUES "
               "(sha256(convert_to('" +
               token + "', 'UTF8')), " + std::to_string(owner) + ")");
    return token;
}

environment world::node_settings(environment const& more) const {
    return with(settings_, more);
}

std::unique_ptr<node> world::start_node(environment const& more) const {
    auto started = std::make_unique<node>(node_settings(more));
    started->await_ready();
    return started;
}

finished world::presenced(std::vector<std::string> const& arguments,
                          environment const& more) const {
    std::vector<std::string> command{binary()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return run(command, with(settings_, more));
}

clients::cable_client_options world::client_options(node const& to) const {
    clients::cable_client_options options;
    options.port = to.port();
    options.token = token_;
    return options;
}

std::unique_ptr<cable> world::connect(node const& to) {
    return connect(client_options(to));
}

std::unique_ptr<cable> world::connect(clients::cable_client_options options) {
    return std::make_unique<cable>(loop_, std::move(options));
}

std::unique_ptr<cable> world::session(node const& to) {
    return session(client_options(to));
}

std::unique_ptr<cable> world::session(clients::cable_client_options options) {
    auto client = connect(std::move(options));
    auto const opened = client->next();
    auto const welcome = client->next();
    if (!opened.starts_with("opened") || welcome != "welcome") {
        throw std::runtime_error{"no session: " + opened + ", " + welcome};
    }
    return client;
}

std::unique_ptr<cable> world::subscriber(node const& to, std::int64_t agent) {
    auto client = session(to);
    client->subscribe(identifier(agent));
    auto const answer = client->next();
    if (answer != "confirm " + identifier(agent)) {
        throw std::runtime_error{"not subscribed: " + answer};
    }
    return client;
}

bool world::is_active(std::int64_t agent) {
    return sql_.value("SELECT routing_active FROM agents WHERE id = " + std::to_string(agent)) ==
           "t";
}

long world::rows(std::int64_t agent) {
    return sql_.number("SELECT count(*) FROM agent_subscriptions WHERE agent_id = " +
                       std::to_string(agent));
}

long world::rows() {
    return sql_.number("SELECT count(*) FROM agent_subscriptions");
}

bool world::becomes_active(std::int64_t agent, bool active, milliseconds limit) {
    return eventually([&] { return is_active(agent) == active; }, limit);
}

bool world::has_rows(std::int64_t agent, long count, milliseconds limit) {
    return eventually([&] { return rows(agent) == count; }, limit);
}

std::string world::transitions(std::int64_t agent) {
    return sql_.value("SELECT string_agg(CASE WHEN active THEN 'on ' ELSE 'off ' END || reason, "
                      "', ' ORDER BY id) FROM routing_transitions WHERE agent_id = " +
                      std::to_string(agent));
}

std::string identifier(std::int64_t agent, std::string const& session_id) {
    auto text = R"({"channel":"AgentChannel","agent_id":)" + std::to_string(agent);
    if (!session_id.empty()) {
        text += R"(,"session_id":")" + session_id + '"';
    }
    return text + '}';
}

std::string command(std::string const& name, std::string const& identifier) {
    return nlohmann::json{{"command", name}, {"identifier", identifier}}.dump();
}

} // namespace presenced::tests
