#include "tests/support/catch.hpp"
#include "tests/support/postgres.hpp"
#include "tests/support/process.hpp"
#include "tests/support/scale.hpp"

using namespace presenced::tests;

// With PRESENCED_ATTACK_SECONDS for longer.
TEST_CASE("concurrent psql sessions against the SQL functions break no promise", "[db][attack]") {
    auto const seconds = scale("PRESENCED_ATTACK_SECONDS", 2);
    auto const conninfo = postgres::shared().create_database(false);
    auto const done = run({PRESENCED_SOURCE_DIR "/tests/db/attack", std::to_string(seconds)},
                          {{"PGHOST", "127.0.0.1"},
                           {"PGPORT", std::to_string(postgres::shared().port())},
                           {"PGUSER", "postgres"},
                           {"PGDATABASE", conninfo.substr(conninfo.find("dbname=") + 7)}},
                          std::chrono::seconds{120 + 2 * seconds});
    INFO(done.output << done.errors);
    CHECK(done.code == 0);
    CHECK(done.output.find("violations                       0") != std::string::npos);
}
