#include "server/cable/hub.hpp"
#include "server/cable/outbox.hpp"
#include "server/http/forwarded.hpp"
#include "server/loop/slot_table.hpp"
#include "server/node/admission.hpp"
#include "tests/support/catch.hpp"

#include <string>
#include <vector>

using namespace presenced;
using namespace presenced::server;
using namespace std::chrono_literals;

namespace {

frame text(std::string s) {
    return std::make_shared<std::string const>(std::move(s));
}

metrics figures{"test", "test"};
lease_counts counts{figures};

class nobody final : public lease_holder {
public:
    void on_moved(subscription&) noexcept override {}
    void on_confirmed(subscription&) override {}
    void on_rejected(subscription&) override {}
    void on_lease_lost(subscription&) override {}
    void on_owner_changed(subscription&) override {}
    void on_no_room(subscription&) override {}
    void on_renewed() override {}
    void fail(std::string_view, std::exception const&) override {}
};
nobody holder;

struct on_agent : subscription {
    explicit on_agent(presence::agent_id id)
        : subscription{counts, presence::lease_token{}, {}, id, holder, {}} {}
};

} // namespace

TEST_CASE("an outbox gives frames back in order and forgets its memory when empty") {
    outbox box;
    for (int i = 0; i < 500; ++i) {
        REQUIRE(box.push(text(std::to_string(i))));
    }
    for (int i = 0; i < 500; ++i) {
        REQUIRE(*box.front() == std::to_string(i));
        box.pop();
    }
    CHECK(box.empty());
}

TEST_CASE("an outbox is bounded in frames and in bytes") {
    outbox frames;
    for (std::size_t i = 0; i < outbox::max_frames; ++i) {
        REQUIRE(frames.push(text("x")));
    }
    CHECK_FALSE(frames.push(text("x")));

    outbox bytes;
    REQUIRE(bytes.push(text(std::string(outbox::max_bytes, 'x'))));
    CHECK_FALSE(bytes.push(text("x")));
    bytes.pop();
    CHECK(bytes.push(text("x")));
}

TEST_CASE("a slot table never finds a successor under its predecessor's key") {
    slot_table<int> table;
    auto const first = table.insert(std::make_unique<int>(1));
    CHECK(*table.find(first) == 1);
    CHECK(*table.remove(first) == 1);
    auto const second = table.insert(std::make_unique<int>(2));
    CHECK(first != second);
    CHECK(table.find(first) == nullptr);
    CHECK(table.remove(first) == nullptr);
    CHECK(*table.find(second) == 2);
    CHECK(table.size() == 1);
}

TEST_CASE("a hub has a listener from the first attach to the last detach") {
    hub streams;
    on_agent a{7};
    on_agent b{7};
    streams.attach(a);
    streams.attach(b);
    CHECK(streams.has_listener(7));
    streams.detach(a);
    streams.detach(a);
    CHECK(streams.has_listener(7));
    streams.detach(b);
    CHECK_FALSE(streams.has_listener(7));
    CHECK(streams.empty());
}

TEST_CASE("admission counts in all and by address, and takes places back") {
    admission control{2, 1};
    auto first = control.admit("192.0.2.1");
    REQUIRE(first.ticket);
    auto again = control.admit("192.0.2.1");
    CHECK_FALSE(again.ticket);
    CHECK(again.why == admission::refusal::address);
    auto other = control.admit("192.0.2.2");
    REQUIRE(other.ticket);
    auto third = control.admit("192.0.2.3");
    CHECK_FALSE(third.ticket);
    CHECK(third.why == admission::refusal::full);
    first.ticket.reset();
    CHECK(control.admit("192.0.2.1").ticket);
}

TEST_CASE("a bad token has three tries a minute, each token for itself") {
    admission control{10, 0};
    db::token_digest bad{};
    auto const start = admission::clock::time_point{} + 1h;
    for (int i = 0; i < 3; ++i) {
        CHECK_FALSE(control.turned_away(bad, start + i * 1s));
    }
    CHECK(control.turned_away(bad, start + 10s) == 50s);
    db::token_digest other{};
    other[0] = 1;
    CHECK_FALSE(control.turned_away(other, start + 10s));
    CHECK_FALSE(control.turned_away(bad, start + 60s));
}

TEST_CASE("a bad token that comes again is noticed among tens of thousands of others") {
    admission control{10, 0};
    auto const token = [](unsigned n) {
        db::token_digest digest{};
        for (std::size_t i = 0; i < 4; ++i) {
            digest[i] = static_cast<std::uint8_t>(n >> 8 * i);
        }
        return digest;
    };
    auto const start = admission::clock::time_point{} + 1h;
    unsigned next = 0;
    auto const flood = [&](unsigned count, admission::clock::time_point at) {
        auto refused = 0;
        for (unsigned i = 0; i < count; ++i) {
            refused += control.turned_away(token(++next), at) ? 1 : 0;
        }
        CHECK(refused == 0);
    };
    flood(100'000, start);
    // Also long after a flood, when all that is remembered is old.
    auto const at = start + GENERATE(0s, 3600s);
    for (unsigned again = 0; again < 20; ++again) {
        auto const bad = token(1'000'000'000 + again);
        for (int i = 0; i < 3; ++i) {
            CHECK_FALSE(control.turned_away(bad, at));
            flood(5'000, at);
        }
        CHECK(control.turned_away(bad, at) == 60s);
    }
}

TEST_CASE("address and host come from a trusted proxy's headers, and from nobody else's") {
    std::vector<cidr> const trusted{parse_cidr("10.0.0.0/8"), parse_cidr("::1/128")};
    auto const ask = [&](char const* peer, char const* forwarded_for, char const* host) {
        return find_client(boost::asio::ip::make_address(peer), "direct.example", forwarded_for,
                           host, trusted);
    };
    SECTION("an untrusted peer cannot forge anything") {
        auto const from = ask("192.0.2.9", "203.0.113.1", "forged.example");
        CHECK(from.address == "192.0.2.9");
        CHECK(from.host == "direct.example");
    }
    SECTION("the right-most entry that is no trusted proxy counts") {
        auto const from = ask("10.1.2.3", "6.6.6.6, 203.0.113.1, 10.9.9.9", "a.example, b.example");
        CHECK(from.address == "203.0.113.1");
        CHECK(from.host == "b.example");
    }
    SECTION("without headers the proxy itself is the address") {
        auto const from = ask("::1", "", "");
        CHECK(from.address == "::1");
        CHECK(from.host == "direct.example");
    }
    SECTION("an entry may carry its port") {
        CHECK(ask("10.1.2.3", "203.0.113.1:4711", "").address == "203.0.113.1");
        CHECK(ask("10.1.2.3", "[2001:db8::7]:4711", "").address == "2001:db8::7");
        CHECK(ask("10.1.2.3", "2001:db8::7", "").address == "2001:db8::7");
    }
    SECTION("an entry that is no address ends the search") {
        CHECK(ask("10.1.2.3", "203.0.113.1, unknown", "").address == "10.1.2.3");
    }
    SECTION("IPv4 that arrives as IPv6 is matched and shown as IPv4") {
        CHECK(ask("::ffff:10.1.2.3", "::ffff:203.0.113.1", "").address == "203.0.113.1");
    }
}
