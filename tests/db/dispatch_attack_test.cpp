#include "tests/support/catch.hpp"
#include "tests/support/postgres.hpp"
#include "tests/support/process.hpp"
#include "tests/support/scale.hpp"

#include <chrono>
#include <string>

using namespace presenced::tests;

namespace {

finished attack(std::string const& program, std::string const& argument) {
    auto const conninfo = postgres::shared().create_database(false);
    return run({PRESENCED_SOURCE_DIR "/tests/db/" + program, argument},
               {{"PGHOST", "127.0.0.1"},
                {"PGPORT", std::to_string(postgres::shared().port())},
                {"PGUSER", "postgres"},
                {"PGDATABASE", conninfo.substr(conninfo.find("dbname=") + 7)}},
               std::chrono::seconds{180});
}

} // namespace

// With PRESENCED_ATTACK_SECONDS for longer.
TEST_CASE("concurrent psql sessions against the functions of delivery break no promise",
          "[db][attack][delivery]") {
    auto const done =
        attack("dispatch_attack", std::to_string(scale("PRESENCED_ATTACK_SECONDS", 2)));
    INFO(done.output << done.errors);
    CHECK(done.code == 0);
    CHECK(done.output.find("violations                       0") != std::string::npos);
}

TEST_CASE("every bug that is planted in delivery still has its place", "[db][attack][delivery]") {
    auto const done = attack("dispatch_bugs", "--check");
    INFO(done.output << done.errors);
    CHECK(done.code == 0);
}
