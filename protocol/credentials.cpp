#include "protocol/credentials.hpp"

#include "base/text.hpp"

#include <algorithm>

namespace presenced::protocol {
namespace {

int hex_value(char c) noexcept {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return -1;
}

std::string decode_form(std::string_view text) {
    std::string decoded;
    decoded.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '+') {
            decoded += ' ';
            continue;
        }
        if (text[i] == '%' && i + 2 < text.size()) {
            int const high = hex_value(text[i + 1]);
            int const low = hex_value(text[i + 2]);
            if (high >= 0 && low >= 0) {
                decoded += static_cast<char>(high * 16 + low);
                i += 2;
                continue;
            }
        }
        decoded += text[i];
    }
    return decoded;
}

std::string query_token(std::string_view target) {
    std::string token;
    auto const mark = target.find('?');
    if (mark == std::string_view::npos) {
        return token;
    }
    std::string_view query = target.substr(mark + 1);
    query = query.substr(0, query.find('#'));
    while (!query.empty()) {
        auto const end = std::min(query.find('&'), query.size());
        std::string_view const pair = query.substr(0, end);
        query.remove_prefix(std::min(end + 1, query.size()));
        auto const equals = std::min(pair.find('='), pair.size());
        if (decode_form(pair.substr(0, equals)) == "token") {
            token = decode_form(pair.substr(std::min(equals + 1, pair.size())));
        }
    }
    return token;
}

std::string_view bearer_token(std::string_view authorization) noexcept {
    static constexpr std::string_view scheme = "bearer"; // any case (RFC 7235 section 2.1)
    std::string_view const value = base::trim(authorization, base::blanks);
    bool const is_bearer = value.size() > scheme.size() && value[scheme.size()] == ' ' &&
                           std::equal(scheme.begin(), scheme.end(), value.begin(),
                                      [](char want, char c) { return (c | 0x20) == want; });
    return is_bearer ? base::trim(value.substr(scheme.size()), base::blanks) : std::string_view();
}

} // namespace

std::optional<std::string> find_token(std::string_view target, std::string_view authorization) {
    if (std::string token = query_token(target); !token.empty()) {
        return token;
    }
    if (std::string_view const token = bearer_token(authorization); !token.empty()) {
        return std::string(token);
    }
    return std::nullopt;
}

} // namespace presenced::protocol
