#include "db/session/sqlstate.hpp"
#include "tests/support/catch.hpp"

using namespace presenced::db::sqlstate;

TEST_CASE("an error code of five characters counts before its class") {
    CHECK(meaning_of("57014").whom == blame::moment);
    CHECK(meaning_of("57P01").whom == blame::everybody);
    CHECK(meaning_of("40P01").whom == blame::moment);
    CHECK(meaning_of("40002").whom == blame::everybody);
    CHECK(meaning_of("40003").may_have_committed);
    CHECK_FALSE(meaning_of("40001").may_have_committed);
}

TEST_CASE(
    "a connection that broke without a word speaks against everybody and may have committed") {
    CHECK(meaning_of("").whom == blame::everybody);
    CHECK(meaning_of("").may_have_committed);
}

TEST_CASE(
    "rights, stale plans, limits and internal errors are doubtful, other errors the request's") {
    for (auto const* state : {"42501", "0A000", "54001", "XX001"}) {
        CHECK(meaning_of(state).whom == blame::doubtful);
    }
    for (auto const* state : {"23505", "22001", "P0001", "55000", "ABCDE"}) {
        CHECK(meaning_of(state).whom == blame::request);
        CHECK_FALSE(meaning_of(state).may_have_committed);
    }
}

TEST_CASE("only a constraint of agent_subscriptions, or one that names no table, rejects") {
    CHECK(rejects_subscribe("23505", "agent_subscriptions"));
    CHECK(rejects_subscribe("23514", ""));
    CHECK_FALSE(rejects_subscribe("23505", "routing_transitions"));
    CHECK_FALSE(rejects_subscribe("23514", "audit"));
    CHECK(rejects_subscribe("22001", ""));
    CHECK_FALSE(rejects_subscribe("2200H", ""));
    CHECK_FALSE(rejects_subscribe("42501", "agent_subscriptions"));
    CHECK_FALSE(rejects_subscribe("", ""));
}
