#include "db/dialer.hpp"
#include "tests/support/catch.hpp"

#include <stdexcept>

using namespace presenced;

TEST_CASE("connect: an empty item in a list of ports is the default port", "[db][connect]") {
    db::stop_signal stop;
    std::string problem;
    try {
        // Nobody listens on the first; should a server be there on the second, it knows no such
        // database.
        db::dial("host=127.0.0.1,127.0.0.1 port=1, dbname=presenced_no_such user=presenced_no_such",
                 stop);
    } catch (std::runtime_error const& e) {
        problem = e.what();
    }
    INFO(problem);
    CHECK(problem.find("port 5432") != std::string::npos);
}
