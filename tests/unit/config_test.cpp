#include "server/cli/url.hpp"
#include "server/node/config.hpp"
#include "server/node/log.hpp"
#include "tests/support/catch.hpp"

#include <arpa/inet.h>

using namespace std::chrono_literals;
using namespace presenced::server;

namespace {

constexpr auto database = "postgresql://presenced@localhost/presenced";

config_source source_with(std::map<std::string, std::string> environment,
                          std::map<std::string, std::string> flags = {}) {
    config_source source;
    source.environment = std::move(environment);
    source.environment.emplace("DATABASE_URL", database);
    source.flags = std::move(flags);
    source.host_name = "alpha";
    source.cores = 3;
    return source;
}

config parse(std::map<std::string, std::string> environment,
             std::map<std::string, std::string> flags = {}) {
    return parse_config(source_with(std::move(environment), std::move(flags)));
}

// What the refusal says; empty when there is none.
std::string refusal(std::map<std::string, std::string> environment,
                    std::map<std::string, std::string> flags = {}) {
    try {
        parse(std::move(environment), std::move(flags));
    } catch (bad_setting const& problem) {
        return problem.what();
    }
    return {};
}

std::array<std::uint8_t, 16> address(char const* text) {
    std::array<std::uint8_t, 16> bytes{};
    if (inet_pton(AF_INET, text, bytes.data() + 12) == 1) {
        bytes[10] = bytes[11] = 0xff;
    } else {
        REQUIRE(inet_pton(AF_INET6, text, bytes.data()) == 1);
    }
    return bytes;
}

} // namespace

TEST_CASE("without settings the documented defaults count") {
    auto const c = parse({});
    CHECK(c.listen == std::vector<endpoint>{{"127.0.0.1", 8080}, {"::1", 8080}});
    CHECK(c.timings.heartbeat == 15s);
    CHECK(c.timings.stale_after == 45s);
    CHECK(c.timings.sweep == 5s);
    CHECK(c.timings.ping == 3s);
    CHECK(c.timings.peer_timeout == 30s);
    CHECK(c.timings.disconnect_grace == 0s);
    CHECK(c.timings.unreachable_limit == 120s);
    CHECK_FALSE(c.stale_after);
    CHECK(c.drain_delay == 0s);
    CHECK(c.drain_timeout == 20s);
    CHECK(c.allowed_origins.empty());
    CHECK(c.channels == std::vector<std::string>{"AgentChannel", "Collavre::AgentChannel"});
    CHECK(c.path == "/cable");
    CHECK(c.node == "alpha");
    CHECK(c.threads == 3);
    CHECK_FALSE(c.db_connections);
    CHECK_FALSE(c.max_connections);
    CHECK(c.max_subscriptions == 100);
    CHECK(c.max_connections_per_address == 0);
    CHECK(c.max_connections_per_owner == 0);
    CHECK(c.trusted_proxies.empty());
    CHECK(c.transitions_keep == 24h * 90);
    CHECK(c.log.level == log_level::info);
    CHECK(c.log.format == log_format::text);
    CHECK(c.conninfo == database);
}

TEST_CASE("every setting is read from its variable") {
    auto const c = parse({{"PRESENCED_LISTEN", "0.0.0.0:1, [::]:0,localhost:65535"},
                          {"PRESENCED_HEARTBEAT", "1500ms"},
                          {"PRESENCED_STALE_AFTER", "5s"},
                          {"PRESENCED_SWEEP", "500ms"},
                          {"PRESENCED_PING", "300ms"},
                          {"PRESENCED_PEER_TIMEOUT", "3s"},
                          {"PRESENCED_DISCONNECT_GRACE", "2s"},
                          {"PRESENCED_UNREACHABLE_LIMIT", "1m"},
                          {"PRESENCED_DRAIN_DELAY", "5s"},
                          {"PRESENCED_DRAIN_TIMEOUT", "1h"},
                          {"PRESENCED_ALLOWED_ORIGINS", "a.example, *.b.example:8443"},
                          {"PRESENCED_CHANNELS", "One,Two::Three"},
                          {"PRESENCED_PATH", "/ws"},
                          {"PRESENCED_NODE", "n-1"},
                          {"PRESENCED_THREADS", "2"},
                          {"PRESENCED_DB_CONNECTIONS", "7"},
                          {"PRESENCED_MAX_CONNECTIONS", "20000"},
                          {"PRESENCED_MAX_SUBSCRIPTIONS", "5"},
                          {"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "9"},
                          {"PRESENCED_MAX_CONNECTIONS_PER_OWNER", "8"},
                          {"PRESENCED_TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8,192.0.2.7"},
                          {"PRESENCED_TRANSITIONS_KEEP", "2d"},
                          {"PRESENCED_LOG_LEVEL", "debug"},
                          {"PRESENCED_LOG_FORMAT", "json"}});
    CHECK(c.listen ==
          std::vector<endpoint>{{"0.0.0.0", 1}, {"::", 0}, {"127.0.0.1", 65535}, {"::1", 65535}});
    CHECK(c.timings.heartbeat == 1500ms);
    CHECK(c.timings.stale_after == 5s);
    CHECK(c.stale_after == 5s);
    CHECK(c.timings.sweep == 500ms);
    CHECK(c.timings.ping == 300ms);
    CHECK(c.timings.peer_timeout == 3s);
    CHECK(c.timings.disconnect_grace == 2s);
    CHECK(c.timings.unreachable_limit == 1min);
    CHECK(c.drain_delay == 5s);
    CHECK(c.drain_timeout == 1h);
    CHECK(c.allowed_origins == std::vector<std::string>{"a.example", "*.b.example:8443"});
    CHECK(c.channels == std::vector<std::string>{"One", "Two::Three"});
    CHECK(c.path == "/ws");
    CHECK(c.node == "n-1");
    CHECK(c.threads == 2);
    CHECK(c.transition_lanes() == 3);
    CHECK(c.max_connections == 20000);
    CHECK(c.max_subscriptions == 5);
    CHECK(c.max_connections_per_address == 9);
    CHECK(c.max_connections_per_owner == 8);
    CHECK(c.trusted_proxies.size() == 3);
    CHECK(c.transitions_keep == 48h);
    CHECK(c.log.level == log_level::debug);
    CHECK(c.log.format == log_format::json);
}

TEST_CASE("a flag counts over its variable, and every setting has one") {
    CHECK(parse({{"PRESENCED_PING", "2s"}}, {{"--ping", "1s"}}).timings.ping == 1s);
    CHECK(parse({{"PRESENCED_PING", "nonsense"}}, {{"--ping", "1s"}}).timings.ping == 1s);
    for (auto const& s : settings()) {
        std::string expected = "--";
        for (auto const* c = s.variable + std::string{"PRESENCED_"}.size(); *c != '\0'; ++c) {
            expected += *c == '_' ? '-' : static_cast<char>(std::tolower(*c));
        }
        CHECK(s.flag == expected);
    }
}

TEST_CASE("a variable that is set to nothing is not set") {
    CHECK(parse({{"PRESENCED_PING", ""}, {"PRESENCED_LISTEN", ""}}).timings.ping == 3s);
}

TEST_CASE("a bad value is refused with the setting, the value and what is allowed") {
    struct bad {
        char const* variable;
        char const* value;
        char const* allowed;
    };
    auto const b = GENERATE(
        values<bad>({{"PRESENCED_LISTEN", "8080", "address:port"},
                     {"PRESENCED_LISTEN", "::1:8080", "[::1]:8080"},
                     {"PRESENCED_LISTEN", "[127.0.0.1]:8080", "address:port"},
                     {"PRESENCED_LISTEN", "127.0.0.1:65536", "address:port"},
                     {"PRESENCED_LISTEN", "127.0.0.1:", "address:port"},
                     {"PRESENCED_LISTEN", "example.com:80", "address:port"},
                     {"PRESENCED_LISTEN", ",", "address:port"},
                     {"PRESENCED_HEARTBEAT", "15", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "15 s", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "1.5s", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "-1s", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "s", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "15S", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "0s", "from 1ms to 24h"},
                     {"PRESENCED_HEARTBEAT", "99999999999999999999d", "a number and its unit"},
                     {"PRESENCED_HEARTBEAT", "4000d", "from 1ms to 24h"},
                     {"PRESENCED_STALE_AFTER", "45", "such as 250ms, 15s, 5m, 2h or 90d"},
                     {"PRESENCED_SWEEP", "never", "a number and its unit"},
                     {"PRESENCED_PING", "2d", "from 1ms to 24h"},
                     {"PRESENCED_PEER_TIMEOUT", "1ms", "from 3ms to 24h"},
                     {"PRESENCED_DISCONNECT_GRACE", "no", "a number and its unit"},
                     {"PRESENCED_UNREACHABLE_LIMIT", "0ms", "from 1ms to 24h"},
                     {"PRESENCED_DRAIN_DELAY", "5", "a number and its unit"},
                     {"PRESENCED_DRAIN_TIMEOUT", "0s", "from 1ms to 24h"},
                     {"PRESENCED_ALLOWED_ORIGINS", "https://a.example/x", "scheme://host[:port]"},
                     {"PRESENCED_ALLOWED_ORIGINS", "**", "*.host"},
                     {"PRESENCED_CHANNELS", " , ", "one or more names"},
                     {"PRESENCED_PATH", "cable", "begins with /"},
                     {"PRESENCED_PATH", "/cable?x", "without ?"},
                     {"PRESENCED_PATH", "/metrics", "none of /healthz"},
                     {"PRESENCED_NODE", "a b", "letters, digits"},
                     {"PRESENCED_THREADS", "0", "a whole number from 1 to 256"},
                     {"PRESENCED_THREADS", "two", "a whole number from 1 to 256"},
                     {"PRESENCED_DB_CONNECTIONS", "4", "from 5 to 36"},
                     {"PRESENCED_MAX_CONNECTIONS", "-1", "from 1 to 10000000"},
                     {"PRESENCED_MAX_SUBSCRIPTIONS", "0", "from 1 to 100000"},
                     {"PRESENCED_MAX_CONNECTIONS_PER_ADDRESS", "1e3", "from 0 to 10000000"},
                     {"PRESENCED_TRUSTED_PROXIES", "10.0.0.0/33", "addresses and blocks"},
                     {"PRESENCED_TRUSTED_PROXIES", "proxy.example", "addresses and blocks"},
                     {"PRESENCED_TRANSITIONS_KEEP", "90", "a number and its unit"},
                     {"PRESENCED_TRANSITIONS_KEEP", "0s", "from 1h to 3650d"},
                     {"PRESENCED_TRANSITIONS_KEEP", "59m", "from 1h to 3650d"},
                     {"PRESENCED_TRANSITIONS_KEEP", "3651d", "from 1h to 3650d"},
                     {"PRESENCED_LOG_LEVEL", "verbose", "debug, info, warn or error"},
                     {"PRESENCED_LOG_FORMAT", "xml", "text or json"}}));
    CAPTURE(b.variable, b.value);
    auto const said = refusal({{b.variable, b.value}});
    CHECK(said.starts_with(std::string{b.variable} + " is '" + b.value + "'; allowed: "));
    CHECK(said.find(b.allowed) != said.npos);
}

TEST_CASE("a refusal names the flag when the value came by flag, and lists every problem") {
    CHECK(refusal({}, {{"--ping", "3"}}).starts_with("--ping is '3'; allowed: "));
    auto const said = refusal({{"PRESENCED_PING", "3"}, {"PRESENCED_PATH", "x"}});
    CHECK(said.find("PRESENCED_PING") != said.npos);
    CHECK(said.find("\nPRESENCED_PATH") != said.npos);
}

TEST_CASE("timings that break a promise are refused with the relation") {
    CHECK(refusal({{"PRESENCED_PING", "5s"}}).find("PRESENCED_PING = 5s must be shorter") == 0);
    CHECK(refusal({{"PRESENCED_STALE_AFTER", "30s"}}).find("2 x PRESENCED_HEARTBEAT") !=
          std::string::npos);
}

TEST_CASE("what is recorded in the database decides stale_after") {
    SECTION("nothing given: the recorded one is used") {
        CHECK(settle_stale_after(parse({}), 60s).stale_after == 60s);
    }
    SECTION("the same one given") {
        CHECK(settle_stale_after(parse({{"PRESENCED_STALE_AFTER", "60s"}}), 60s).stale_after ==
              60s);
    }
    SECTION("another one given: refused") {
        auto const c = parse({{"PRESENCED_STALE_AFTER", "60s"}});
        CHECK_THROWS_AS(settle_stale_after(c, 45s), bad_setting);
        try {
            settle_stale_after(c, 45s);
        } catch (bad_setting const& problem) {
            std::string const said = problem.what();
            CHECK(said.find("PRESENCED_STALE_AFTER is '60s'") == 0);
            CHECK(said.find("recorded 45s") != said.npos);
            CHECK(said.find("presenced migrate") != said.npos);
        }
    }
    SECTION("timings that fit no 45 s lease may fit the recorded one") {
        auto const c = parse({{"PRESENCED_HEARTBEAT", "30s"}});
        CHECK(settle_stale_after(c, 120s).heartbeat == 30s);
        CHECK_THROWS_AS(settle_stale_after(c, 45s), bad_setting);
    }
}

TEST_CASE("the database is named by URL, file or libpq's variables") {
    config_source source;
    SECTION("none: refused with the cure") {
        try {
            parse_conninfo(source);
            FAIL("not refused");
        } catch (bad_setting const& problem) {
            CHECK(std::string{problem.what()}.starts_with("DATABASE_URL is not set; allowed: "));
        }
    }
    SECTION("libpq's own") {
        source.environment = {{"PGHOST", "/run/postgresql"}};
        CHECK(parse_conninfo(source).empty());
    }
    SECTION("a file, of which the last line break does not count") {
        source.environment = {{"DATABASE_URL_FILE", "/run/secrets/url"}};
        source.read_file = [](std::string const& path) {
            return path == "/run/secrets/url" ? std::optional<std::string>{"dbname=x\n"}
                                              : std::nullopt;
        };
        CHECK(parse_conninfo(source) == "dbname=x");
        source.flags = {{"--database-url-file", "/nowhere"}};
        CHECK_THROWS_WITH(parse_conninfo(source),
                          "--database-url-file is '/nowhere'; allowed: a file that can be read "
                          "and holds a connection string");
    }
    SECTION("both URL and file: refused, but a flag counts over the other's variable") {
        source.environment = {{"DATABASE_URL", "dbname=x"}, {"DATABASE_URL_FILE", "/f"}};
        CHECK_THROWS_AS(parse_conninfo(source), bad_setting);
        source.flags = {{"--database-url", "dbname=y"}};
        CHECK(parse_conninfo(source) == "dbname=y");
    }
    SECTION("what libpq does not know is named with the cure, and the password is not") {
        source.environment = {{"DATABASE_URL", "postgresql://u:hush@h/d?pool=5"}};
        try {
            parse_conninfo(source);
            FAIL("not refused");
        } catch (bad_setting const& problem) {
            std::string const said = problem.what();
            CHECK(said.find("DATABASE_URL: ") == 0);
            CHECK(said.find("'pool'") != said.npos);
            CHECK(said.find("remove it") != said.npos);
            CHECK(said.find("hush") == said.npos);
        }
    }
    SECTION("a value that libpq would refuse at every try is named with what is allowed") {
        struct bad {
            std::string given;
            std::vector<std::string> said;
        };
        std::vector<bad> const all{
            {"postgresql://u:hush@h/d?sslmode=bogus", {"'sslmode'", "'bogus'", "verify-full"}},
            {"host=h password=hush gssencmode=yes", {"'gssencmode'", "'yes'", "prefer"}},
            {"postgresql://u:hush@h/d?channel_binding=on", {"'channel_binding'", "require"}},
            {"postgresql://u:hush@h/d?target_session_attrs=rw", {"'rw'", "read-write, primary"}},
            {"postgresql://u:hush@h/d?target_session_attrs=prefer-standby", {"'prefer-standby'"}},
            {"postgresql://u:hush@h/d?connect_timeout=5s", {"connect_timeout", "whole number"}},
            {"postgresql://u:hush@h/d?keepalives_idle=x", {"keepalives_idle", "whole number"}},
            {"postgresql://u:hush@h:99999/d", {"99999", "1 to 65535"}},
            {"postgresql://u:hush@h:0/d", {"0", "1 to 65535"}},
            {"postgresql://u:hush@g:5432,h:-1/d", {"-1", "1 to 65535"}},
            {"postgresql://u:hush/more@h/d", {"1 to 65535", "%2F"}},
            {"host=g,h port=1,2,3 password=hush", {"3 ports for 2 hosts", "one for each"}},
            {"host=h port=1,2 password=hush", {"2 ports for 1 host;", "one for all hosts"}},
            {"hostaddr=::1,::2 port=1,2,3 password=hush", {"3 ports for 2 hosts"}},
            {"host=g,h hostaddr=::1 password=hush", {"1 hostaddr for 2 hosts", "one for each"}},
            {"host=h hostaddr=::1,::2 password=hush", {"2 hostaddrs for 1 host;"}},
        };
        for (auto const& one : all) {
            source.environment = {{"DATABASE_URL", one.given}};
            CAPTURE(one.given);
            try {
                parse_conninfo(source);
                FAIL("not refused");
            } catch (bad_setting const& problem) {
                std::string const said = problem.what();
                CAPTURE(said);
                CHECK(said.starts_with("DATABASE_URL: "));
                for (auto const& part : one.said) {
                    CHECK(said.find(part) != said.npos);
                }
                CHECK(said.find("hush") == said.npos);
            }
        }
    }
    SECTION("values that libpq takes are taken") {
        for (auto const* url :
             {"postgresql://g,h:5433/d", "host=g,h port=,5433", "host=h port=' 5432 '",
              "postgresql://h/d?sslmode=verify-ca&channel_binding=prefer&gssencmode=disable",
              "postgresql://h/d?target_session_attrs=primary&connect_timeout=-1",
              "host=h keepalives=0 tcp_user_timeout=0", "host=g,h port=5433",
              "host=g,h hostaddr=::1,::2 port=1,2", "hostaddr=::1,::2 port=1,2", "host= port=1"}) {
            source.environment = {{"DATABASE_URL", url}};
            CAPTURE(url);
            CHECK(parse_conninfo(source) == url);
        }
    }
    SECTION("libpq's own variables count where the string leaves something open, and are named") {
        auto const complaint = [&]() -> std::string {
            try {
                parse_conninfo(source);
                return {};
            } catch (bad_setting const& problem) {
                return problem.what();
            }
        };
        source.environment = {{"DATABASE_URL", "postgresql://h/d"}, {"PGSSLMODE", "bogus"}};
        CHECK(complaint().starts_with("PGSSLMODE is 'bogus'; allowed: "));
        source.environment["DATABASE_URL"] = "postgresql://h/d?sslmode=require";
        CHECK(complaint().empty());
        source.environment = {{"PGHOST", "h"}, {"PGPORT", "99999"}};
        CHECK(complaint().starts_with("PGPORT is '99999'; allowed: "));
        source.environment = {{"PGHOST", "g,h"}, {"PGPORT", "1,2,3"}};
        CHECK(complaint() ==
              "PGPORT has 3 ports for 2 hosts of PGHOST; allowed: one for all hosts, "
              "or one for each");
        source.environment = {{"DATABASE_URL", "host=g,h"}, {"PGPORT", "1,2,3"}};
        CHECK(complaint().starts_with("PGPORT has 3 ports for 2 hosts of the connection string;"));
        source.environment = {{"DATABASE_URL", "port=1,2"}, {"PGHOST", "h"}};
        CHECK(complaint().starts_with("the connection string has 2 ports for 1 host of PGHOST;"));
        source.environment = {{"DATABASE_URL", "port=1,2"}};
        CHECK(complaint().starts_with("the connection string has 2 ports for 1 host;"));
        source.environment = {{"DATABASE_URL", "host=h"}, {"PGHOSTADDR", "::1,::2"}};
        CHECK(complaint().starts_with("PGHOSTADDR has 2 hostaddrs for 1 host of the connection"));
        source.environment = {{"DATABASE_URL", "port=1,2"}, {"PGHOST", "g,h"}};
        CHECK(complaint().empty());
        source.environment = {{"DATABASE_URL", "host=h port=1"}, {"PGPORT", "1,2"}};
        CHECK(complaint().empty());
        source.environment = {{"PGSERVICE", "here"}, {"PGPORT", "1,2"}};
        CHECK(complaint().empty());
        source.environment = {{"PGSERVICE", "here"}, {"PGSSLMODE", "bogus"}};
        CHECK(complaint().empty()); // the service may say something else
    }
    SECTION("no complaint repeats a part of a password that a slash tears apart") {
        for (auto const* url :
             {"postgresql://u:777777/hush@h/d", "postgresql://u:0777777,0/hush@h/d",
              "postgresql://u:777777/x?sslmode=hush@h/d",
              "postgresql://u:77/x?connect_timeout=777777/hush@h/d"}) {
            source.environment = {{"DATABASE_URL", url}};
            try {
                parse_conninfo(source);
                FAIL("not refused: " << url);
            } catch (bad_setting const& problem) {
                CAPTURE(problem.what());
                CHECK(std::string{problem.what()}.find("777777") == std::string::npos);
                CHECK(std::string{problem.what()}.find("hush") == std::string::npos);
            }
        }
    }
    SECTION("no complaint repeats a password") {
        for (auto const* url : {"postgresql://u:77/x?hush=1@h/d", "host=h password=my hush=secret",
                                "postgresql://u:p@hush@h:5432/d", "postgresql://u:5432/hush@h/d",
                                "postgresql://u:hu%zzsh@h/d", "mysql2://u:hush@h/d", "hush",
                                "postgresql://u:hush@[h/d", "host=h password='hush"}) {
            source.environment = {{"DATABASE_URL", url}};
            try {
                parse_conninfo(source);
                FAIL("not refused: " << url);
            } catch (bad_setting const& problem) {
                CHECK(std::string{problem.what()}.find("sh@") == std::string::npos);
                CHECK(std::string{problem.what()}.find("hush") == std::string::npos);
            }
        }
    }
}

TEST_CASE("a misspelt variable is named, with what may have been meant") {
    auto const lines = unknown_variables(source_with({{"PRESENCED_HARTBEAT", "15s"},
                                                      {"PRESENCED_PING", "3s"},
                                                      {"PRESENCED_TOKEN", "x"},
                                                      {"PRESENCED_SOMETHING_ELSE", "y"},
                                                      {"HOME", "/"}}));
    REQUIRE(lines.size() == 2);
    CHECK(lines[0] == "PRESENCED_HARTBEAT is set, and is no setting of presenced; did you mean "
                      "PRESENCED_HEARTBEAT?");
    CHECK(lines[1] == "PRESENCED_SOMETHING_ELSE is set, and is no setting of presenced");
}

TEST_CASE("a block of addresses contains what its prefix says") {
    CHECK(parse_cidr("10.0.0.0/8").contains(address("10.255.0.1")));
    CHECK_FALSE(parse_cidr("10.0.0.0/8").contains(address("11.0.0.1")));
    CHECK(parse_cidr("192.0.2.128/25").contains(address("192.0.2.200")));
    CHECK_FALSE(parse_cidr("192.0.2.128/25").contains(address("192.0.2.127")));
    CHECK(parse_cidr("192.0.2.7").contains(address("192.0.2.7")));
    CHECK_FALSE(parse_cidr("192.0.2.7").contains(address("192.0.2.6")));
    CHECK(parse_cidr("0.0.0.0/0").contains(address("8.8.8.8")));
    CHECK_FALSE(parse_cidr("0.0.0.0/0").contains(address("fd00::1")));
    CHECK(parse_cidr("fd00::/8").contains(address("fdff::1")));
    CHECK_FALSE(parse_cidr("fd00::/8").contains(address("fe80::1")));
    CHECK(parse_cidr("::/0").contains(address("192.0.2.7")));
    CHECK(parse_cidr("10.1.2.3/8") == parse_cidr("10.0.0.0/8"));
}

TEST_CASE("durations are shown in a unit that reads well and lose nothing") {
    CHECK(show_duration(0ms) == "0s");
    CHECK(show_duration(250ms) == "250ms");
    CHECK(show_duration(1500ms) == "1500ms");
    CHECK(show_duration(15s) == "15s");
    CHECK(show_duration(120s) == "120s");
    CHECK(show_duration(10min) == "10m");
    CHECK(show_duration(2h) == "2h");
    CHECK(show_duration(90 * 24h) == "90d");
    for (auto const d : {1ms, 999ms, 61'000ms, 601'000ms, 86'400'000ms}) {
        CHECK(parse_duration(show_duration(d)) == d);
    }
}

TEST_CASE("a server that listens on all addresses is reached on loopback") {
    CHECK(reachable_at({{"0.0.0.0", 80}}) == std::vector<endpoint>{{"127.0.0.1", 80}});
    CHECK(reachable_at({{"::", 80}}) == std::vector<endpoint>{{"::1", 80}, {"127.0.0.1", 80}});
    CHECK(reachable_at({{"192.0.2.7", 80}}) == std::vector<endpoint>{{"192.0.2.7", 80}});
    CHECK_THROWS_AS(reachable_at({{"127.0.0.1", 0}}), bad_setting);
}

TEST_CASE("URLs of the command line") {
    auto const read = [](std::string_view text) {
        return parse_url(text, {"ws", "http"}, "/cable", "URL").show();
    };
    CHECK(read("ws://h") == "ws://h:80/cable");
    CHECK(read("ws://h:1/") == "ws://h:1/cable");
    CHECK(read("http://[::1]:8080/ws?a=b") == "http://[::1]:8080/ws?a=b");
    CHECK(read("ws://h?a=b") == "ws://h:80/cable?a=b");
    for (auto const* bad : {"h:80", "ws://", "ws://h:0", "ws://h:70000", "ws://h:x", "ftp://h",
                            "ws://user@h/", "ws://h/a b"}) {
        CAPTURE(bad);
        CHECK_THROWS_AS(read(bad), bad_setting);
    }
    CHECK_THROWS_WITH(read("wss://h"),
                      "URL is 'wss://h'; allowed: ws://HOST:PORT/cable or http://HOST:PORT/cable "
                      "(presenced speaks no TLS itself; connect behind the proxy)");
}

TEST_CASE("a logged value cannot pass for another key or line") {
    CHECK(log_value("plain-1.2:3") == "plain-1.2:3");
    CHECK(log_value("") == R"("")");
    CHECK(log_value("a b") == R"("a b")");
    CHECK(log_value("a\nlevel=x") == R"("a\nlevel=x")");
}
