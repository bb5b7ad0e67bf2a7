// Any text as the value of every setting, as a URL, and as a value in a line of the log. What is
// refused is refused with a sentence; what is taken means the same when it is shown and read again.
#include "server/cli/url.hpp"
#include "server/node/config.hpp"
#include "server/node/log.hpp"
#include "tests/fuzz/check.hpp"

#include <nlohmann/json.hpp>

using namespace presenced::server;

namespace {

// Runs `read`; whether it took the text. Any other exception is a bug, and ends the program.
template <class Refusal, class Read>
bool is_taken(Read read) {
    try {
        read();
        return true;
    } catch (Refusal const& refusal) {
        check(std::string_view(refusal.what()).size() > 1);
        return false;
    }
}

void check_duration(std::string_view text) {
    is_taken<std::invalid_argument>([&] {
        auto const d = parse_duration(text);
        check(d >= std::chrono::milliseconds{0});
        check(parse_duration(show_duration(d)) == d);
    });
}

void check_cidr(std::string_view text) {
    is_taken<std::invalid_argument>([&] {
        auto const block = parse_cidr(text);
        check(block.prefix <= 128 && block.contains(block.network));
        for (unsigned bit = 0; bit < 128; ++bit) {
            auto other = block.network;
            other[bit / 8] = static_cast<std::uint8_t>(other[bit / 8] ^ (0x80U >> bit % 8));
            check(block.contains(other) == (bit >= block.prefix));
        }
    });
}

void check_endpoints(std::string_view text) {
    is_taken<std::invalid_argument>([&] {
        auto const endpoints = parse_endpoints(text);
        std::string shown;
        for (auto const& e : endpoints) {
            shown += to_string(e) + ", ";
        }
        check(parse_endpoints(shown) == endpoints);
    });
}

void check_url(std::string_view text) {
    is_taken<bad_setting>([&] {
        auto const once = parse_url(text, {"ws", "http"}, "/cable", "--url");
        auto const again = parse_url(once.show(), {"ws", "http"}, "/other", "--url");
        check(!once.host.empty() && once.port != 0 && once.target.starts_with('/'));
        check(once.target.find_first_of("\r\n \t#") == std::string::npos);
        check(again.scheme == once.scheme && again.host == once.host && again.port == once.port);
        check(again.target == once.target);
    });
}

void check_log_value(std::string_view text) {
    auto const shown = log_value(text);
    check(shown.find_first_of("\r\n\t") == std::string::npos);
    if (shown.starts_with('"')) {
        check(nlohmann::json::parse(shown).is_string());
    } else {
        check(shown == text && shown.find_first_of(" =\"") == std::string::npos);
    }
}

void check_every_setting(std::string const& text) {
    for (auto const& s : settings()) {
        config value;
        is_taken<std::invalid_argument>([&] { s.parse(text, value); });
    }
    // By flag and by variable it is the same; one of them, for it takes long.
    auto const& one = settings()[text.size() % settings().size()];
    config_source flag;
    flag.environment["DATABASE_URL"] = "postgresql:///presenced";
    auto variable = flag;
    flag.flags[one.flag] = text;
    variable.environment[one.variable] = text;
    bool const by_flag = is_taken<bad_setting>([&] { (void)parse_config(flag); });
    bool const by_variable = is_taken<bad_setting>([&] { (void)parse_config(variable); });
    check(by_flag == by_variable || text.empty()); // an empty variable counts as not set

    config_source database;
    database.environment["DATABASE_URL"] = text;
    is_taken<bad_setting>([&] { check(parse_conninfo(database) == text); });
    database.environment["PRESENCED_" + text.substr(0, 16)] = "x"; // distances take long
    (void)unknown_variables(database);                             // anything but an exception
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
    auto const text = text_of(data, size);
    check_duration(text);
    check_cidr(text);
    check_endpoints(text);
    check_url(text);
    check_log_value(text);
    check_every_setting(std::string(text));
    return 0;
}
