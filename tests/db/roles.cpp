#include "tests/db/roles.hpp"

#include "tests/support/postgres.hpp"

#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

namespace presenced::tests {

namespace {

constexpr auto superuser = "user=postgres ";

std::string chapter_on_roles() {
    std::ifstream file{PRESENCED_SOURCE_DIR "/docs/operations.md"};
    std::ostringstream text;
    text << file.rdbuf();
    auto const page = text.str();
    auto const begin = page.find("\n## Roles and grants\n");
    if (begin == std::string::npos) {
        throw std::runtime_error{"docs/operations.md has no chapter on roles and grants"};
    }
    return page.substr(begin, page.find("\n## ", begin + 1) - begin);
}

std::vector<std::string> statements_of(std::string const& block) {
    std::vector<std::string> statements;
    std::istringstream rest{block};
    for (std::string one; std::getline(rest, one, ';');) {
        if (one.find_first_not_of(" \n") != std::string::npos) {
            statements.push_back(one);
        }
    }
    return statements;
}

bool begins_with(std::string const& text, std::string const& words) {
    return text.find(words) == text.find_first_not_of(" \n");
}

// Once a database; the roles once a server.
void grant(std::string const& conninfo) {
    static std::set<std::string> granted;
    if (!granted.insert(conninfo).second) {
        return;
    }
    auto const roles = documented_roles();
    sql_session sql{conninfo};
    for (auto const& statement : roles.at(0)) {
        if (begins_with(statement, "CREATE ROLE")) {
            auto const name = statement.substr(statement.find("presenced_"));
            if (sql.query("SELECT FROM pg_roles WHERE rolname = '" +
                          name.substr(0, name.find(' ')) + "'")
                    .empty()) {
                sql.query(statement);
            }
        }
    }
    for (auto const& statement : roles.at(1)) {
        sql.query(statement);
    }
}

std::string as(std::string const& role, std::string const& conninfo) {
    if (conninfo.find(superuser) == std::string::npos) {
        return conninfo;
    }
    grant(conninfo);
    return conninfo + " user=" + role;
}

} // namespace

std::vector<std::vector<std::string>> documented_roles() {
    std::vector<std::vector<std::string>> blocks;
    auto const chapter = chapter_on_roles();
    std::string const opening = "```sql\n";
    for (auto at = chapter.find(opening); at != std::string::npos; at = chapter.find(opening, at)) {
        at += opening.size();
        blocks.push_back(statements_of(chapter.substr(at, chapter.find("```", at) - at)));
    }
    if (blocks.size() != 2) {
        throw std::runtime_error{"docs/operations.md: expected two blocks of SQL on roles"};
    }
    return blocks;
}

std::string as_server(std::string const& conninfo) {
    return as("presenced_server", conninfo);
}

std::string as_reader(std::string const& conninfo) {
    return as("presenced_reader", conninfo);
}

} // namespace presenced::tests
