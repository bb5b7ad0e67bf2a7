#include "db/session/conninfo.hpp"
#include "tests/support/catch.hpp"

using namespace presenced::db;

TEST_CASE("a message of PostgreSQL becomes one line that fits into quotes") {
    CHECK(in_one_line("FATAL:  database \"x\" does not exist\nHINT:\tmake it\n") ==
          "FATAL: database 'x' does not exist; HINT: make it");
    CHECK(in_one_line(" \r\n").empty());
}
