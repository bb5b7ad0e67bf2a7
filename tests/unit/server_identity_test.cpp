#include "server/auth/identity.hpp"
#include "tests/support/catch.hpp"

#include <memory>
#include <vector>

using namespace presenced;
using server::identity;

namespace {

db::agent_list list(std::vector<presence::agent_id> agents) {
    return std::make_shared<std::vector<presence::agent_id> const>(std::move(agents));
}

} // namespace

TEST_CASE("an identity without a list includes every agent, one with a list these alone") {
    identity who;
    CHECK(who.includes(1));
    who.agents = list({3, 7, 9});
    for (auto const agent : {3, 7, 9}) {
        CHECK(who.includes(agent));
    }
    for (auto const agent : {1, 4, 8, 10}) {
        CHECK_FALSE(who.includes(agent));
    }
    who.agents = list({});
    CHECK_FALSE(who.includes(1));
}

TEST_CASE("a list narrows the rights of an admin like those of a session") {
    identity who;
    who.role = db::token_role::admin;
    who.agents = list({3});
    CHECK(who.includes(3));
    CHECK_FALSE(who.includes(4));
}

TEST_CASE("grants are told apart by token, owner, role and agents, whoever holds the list") {
    identity who;
    who.owner = 5;
    who.token = 2;
    who.role = db::token_role::peer;
    who.agents = list({3, 7});
    auto same = who;
    same.agents = list({3, 7});
    same.expires_at = presence::time_point{};
    CHECK(who.grant() == same.grant());
    auto const differs = [&](auto change) {
        auto other = same;
        change(other);
        auto const less = who.grant() < other.grant();
        auto const greater = other.grant() < who.grant();
        return less != greater && who.grant() != other.grant();
    };
    CHECK(differs([](identity& i) { i.owner = 6; }));
    CHECK(differs([](identity& i) { i.token = 1; }));
    CHECK(differs([](identity& i) { i.role = db::token_role::app; }));
    CHECK(differs([](identity& i) { i.agents = list({3}); }));
    CHECK(differs([](identity& i) { i.agents = list({}); }));
    CHECK(differs([](identity& i) { i.agents = nullptr; }));
    same.agents = nullptr;
    who.agents = list({});
    CHECK(who.grant() != same.grant());
}

TEST_CASE("a role is known by its name, and no other name is one") {
    for (auto const name : db::role_names) {
        auto const role = db::role_of(name);
        REQUIRE(role);
        CHECK(db::to_string(*role) == name);
    }
    CHECK(db::token_role::session < db::token_role::peer);
    CHECK(db::token_role::peer < db::token_role::app);
    CHECK(db::token_role::app < db::token_role::admin);
    for (auto const* name : {"", "Admin", "admin ", "root"}) {
        CHECK_FALSE(db::role_of(name));
    }
}

TEST_CASE("role and agents cost a session no more than a word and a shared pointer") {
    struct before {
        presence::owner_id owner;
        presence::time_point expires_at;
        db::token_id token;
    };
    CHECK(sizeof(identity) <= sizeof(before) + sizeof(db::agent_list) + sizeof(void*));
}
