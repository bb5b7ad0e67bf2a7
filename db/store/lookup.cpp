#include "db/store/lookup.hpp"

#include "base/text.hpp"
#include "base/threads.hpp"
#include "db/session/thread.hpp"
#include "db/store/arrays.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>

namespace presenced::db {

namespace {

using std::chrono::milliseconds;

constexpr std::size_t batch_limit = 500;
constexpr std::size_t waiting_limit = 65'536;
constexpr milliseconds lock_timeout{1'000};
constexpr milliseconds pause_after_failure{50};
constexpr milliseconds idle_limit{1'000}; // then it sees whether its session lives

bool is_true(std::optional<std::string> const& field) {
    return field == "t";
}

agent_list read_agents(std::optional<std::string> const& field) {
    if (!field) {
        return nullptr;
    }
    std::vector<agent_id> agents;
    for (auto const& element : parse_array(*field)) {
        agents.push_back(std::stoll(element));
    }
    return std::make_shared<std::vector<agent_id> const>(std::move(agents));
}

token_answer read(row const& found, std::uint64_t key) {
    token_answer answer{key, token_outcome::valid, std::stoll(found.at(1).value()),
                        std::stoll(found.at(2).value()), std::nullopt};
    auto const role = role_of(found.at(6).value());
    if (is_true(found.at(3))) {
        answer.outcome = token_outcome::revoked;
    } else if (is_true(found.at(4))) {
        answer.outcome = token_outcome::expired;
    } else if (!role) {
        // Of a later release. Nobody here knows what the token may do, so it may do nothing.
        answer.outcome = token_outcome::unknown;
    } else {
        answer.role = *role;
        answer.agents = read_agents(found.at(7));
        if (found.at(5)) {
            answer.expires_in = milliseconds{std::stoll(*found.at(5))};
        }
    }
    return answer;
}

// As check_tokens writes the agents of a row.
void add_agents(array_literal& lists, agent_list const& agents) {
    if (agents == nullptr) {
        lists.add_null();
        return;
    }
    array_literal list;
    for (auto const agent : *agents) {
        list.add(agent);
    }
    lists.add(list.take());
}

} // namespace

lookup::lookup(session_context const& context, std::size_t board_number, stop_signal& stop)
    : stop_{stop}
    , watcher_{context.watcher}
    , link_{context,
            {"lookup",
             board_number,
             false,
             true,
             lock_timeout,
             true,
             {&statements::authenticate, &statements::check_tokens, &statements::check_owners}}}
    , thread_{base::start_thread("the database", [this] {
        keep_going(
            "lookup", stop_, [this] { return step(); }, [this] { link_.replace(); });
    })} {}

bool lookup::push(authenticate_request request) {
    {
        std::lock_guard const lock{mutex_};
        if (waiting_.size() >= waiting_limit) {
            return false;
        }
        waiting_.push_back(request);
    }
    changed_.notify_one();
    return true;
}

void lookup::push(check_request request) {
    {
        std::lock_guard const lock{mutex_};
        checks_.push_back(std::move(request));
    }
    changed_.notify_one();
}

void lookup::wake() {
    std::lock_guard const lock{mutex_};
    stopping_ = true;
    changed_.notify_one();
}

std::size_t lookup::depth() const {
    std::lock_guard const lock{mutex_};
    return waiting_.size() + checks_.size();
}

// What is asked for stays in the queue until it is answered, so that a failure repeats only itself.
bool lookup::step() {
    if (!link_.connect(stop_)) {
        return false;
    }
    std::vector<authenticate_request> batch;
    std::optional<check_request> one;
    {
        std::unique_lock lock{mutex_};
        changed_.wait_for(lock, idle_limit,
                          [this] { return stopping_ || !waiting_.empty() || !checks_.empty(); });
        if (stopping_) {
            return false;
        }
        auto const n = std::min(batch_limit, waiting_.size());
        batch.assign(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(n));
        if (!checks_.empty()) {
            one = checks_.front();
        }
    }
    try {
        if (!batch.empty() && link_.is_usable()) {
            authenticate(batch);
            std::lock_guard const lock{mutex_};
            waiting_.erase(waiting_.begin(),
                           waiting_.begin() + static_cast<std::ptrdiff_t>(batch.size()));
        }
        if (one && link_.is_usable()) {
            check(*one);
            std::lock_guard const lock{mutex_};
            checks_.pop_front();
        }
    } catch (call_failure const& e) {
        spdlog::debug("lookup failed sqlstate={} reason=\"{}\"", e.sqlstate(), e.what());
        if (e.kind() != fault::connection && stop_.wait_for(pause_after_failure)) {
            return false;
        }
    }
    return true;
}

void lookup::authenticate(std::vector<authenticate_request> const& batch) {
    watcher_.batch("lookup", batch.size());
    array_literal digests;
    for (auto const& request : batch) {
        digests.add("\\x" + base::hex(request.digest));
    }
    auto const found = link_.call(statements::authenticate, {digests.take()});
    std::vector<token_answer> results;
    results.reserve(batch.size());
    for (auto const& request : batch) {
        results.push_back({request.key, token_outcome::unknown, 0, 0, std::nullopt});
    }
    for (auto const& line : found) {
        auto& result = results.at(std::stoul(line.at(0).value()));
        result = read(line, result.key);
    }
    token_answers answers;
    for (std::size_t i = 0; i < batch.size(); ++i) {
        answers.add(*batch[i].box, results[i]);
    }
    answers.deliver();
}

void lookup::check(check_request const& request) {
    check_answer answer;
    if (!request.tokens.empty()) {
        array_literal ids;
        array_literal owners;
        array_literal roles;
        array_literal agents;
        for (auto const& grant : request.tokens) {
            ids.add(grant.id);
            owners.add(grant.owner);
            roles.add(to_string(grant.role));
            add_agents(agents, grant.agents);
        }
        for (auto const& line :
             link_.call(statements::check_tokens,
                        {ids.take(), owners.take(), roles.take(), agents.take()})) {
            answer.ended.push_back(request.tokens.at(std::stoul(line.at(0).value())));
        }
    }
    if (!request.agents.empty()) {
        array_literal agents;
        array_literal owners;
        for (auto const& held : request.agents) {
            agents.add(held.agent);
            owners.add(held.owner);
        }
        for (auto const& line :
             link_.call(statements::check_owners, {agents.take(), owners.take()})) {
            answer.lost.push_back(request.agents.at(std::stoul(line.at(0).value())));
        }
    }
    request.box->deliver(std::move(answer));
}

} // namespace presenced::db
