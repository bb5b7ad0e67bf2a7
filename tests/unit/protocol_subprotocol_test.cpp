// Which WebSocket subprotocol is answered.
#include "protocol/subprotocol.hpp"
#include "tests/support/catch.hpp"

#include <string>

using presenced::protocol::choose_subprotocol;

TEST_CASE("the first known subprotocol that the client offers is answered") {
    CHECK(choose_subprotocol("actioncable-v1-json, actioncable-unsupported") ==
          "actioncable-v1-json");
    CHECK(choose_subprotocol("actioncable-unsupported, actioncable-v1-json") ==
          "actioncable-unsupported");
    CHECK(choose_subprotocol("actioncable-v1-json") == "actioncable-v1-json");
    CHECK(choose_subprotocol("actioncable-unsupported") == "actioncable-unsupported");
}

TEST_CASE("unknown subprotocols are passed over") {
    CHECK(choose_subprotocol("actioncable-v1-ext-json, chat, actioncable-v1-json") ==
          "actioncable-v1-json");
}

TEST_CASE("without a known subprotocol none is answered") {
    CHECK(choose_subprotocol("").empty());
    CHECK(choose_subprotocol("chat, superchat").empty());
    CHECK(choose_subprotocol("actioncable-v1-json2").empty());
    CHECK(choose_subprotocol("actioncable-v1").empty());
    CHECK(choose_subprotocol("ACTIONCABLE-V1-JSON").empty());
    CHECK(choose_subprotocol("actioncable-v1-json actioncable-unsupported").empty());
}

TEST_CASE("spaces, tabs and empty elements of the list do not matter") {
    CHECK(choose_subprotocol(" ,,\t , actioncable-v1-json\t ,") == "actioncable-v1-json");
    CHECK(choose_subprotocol("chat,actioncable-v1-json,x") == "actioncable-v1-json");
    CHECK(choose_subprotocol(",").empty());
    CHECK(choose_subprotocol(" ").empty());
}

TEST_CASE("the answer outlives the request") {
    std::string_view answer;
    {
        std::string const offered = "actioncable-v1-json";
        answer = choose_subprotocol(offered);
        CHECK(answer.data() != offered.data());
    }
    CHECK(answer == "actioncable-v1-json");
}
