#include "server/http/request_head.hpp"

#include "base/text.hpp"
#include "protocol/origin.hpp"

#include <algorithm>
#include <array>

namespace presenced::server {

namespace {

constexpr std::string_view line_end = "\r\n";

// RFC 9110 section 5.6.2.
bool is_token_character(char c) noexcept {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view{"!#$%&'*+-.^_`|~"}.find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) noexcept {
    return !text.empty() && std::all_of(text.begin(), text.end(), is_token_character);
}

bool is_number(std::string_view text) noexcept {
    return !text.empty() && text.size() <= 19 &&
           std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// RFC 9110 section 5.5: what is visible, spaces, tabs, and bytes beyond ASCII.
bool is_field_value(std::string_view text) noexcept {
    return std::all_of(text.begin(), text.end(), [](char c) {
        auto const byte = static_cast<unsigned char>(c);
        return byte == '\t' || (byte >= ' ' && byte != 0x7f);
    });
}

constexpr request_problem bad(std::string_view cause, std::string_view text) {
    return {400, cause, text};
}

constexpr auto not_http = bad("not_http", "This is not an HTTP/1 request.");

std::string_view take_line(std::string_view& text) {
    auto const end = text.find(line_end);
    auto const line = text.substr(0, end);
    text.remove_prefix(std::min(end + line_end.size(), text.size()));
    return line;
}

struct request_line {
    std::string_view method;
    std::string_view target;
    std::string_view version;
};

std::optional<request_line> parse_request_line(std::string_view line) {
    auto const first = line.find(' ');
    auto const last = line.rfind(' ');
    if (first == line.npos || first == last) {
        return std::nullopt;
    }
    request_line parsed{line.substr(0, first), line.substr(first + 1, last - first - 1),
                        line.substr(last + 1)};
    auto const odd = [](char c) {
        return c <= ' ' && c >= 0;
    };
    if (!is_token(parsed.method) || parsed.target.empty() ||
        std::any_of(parsed.target.begin(), parsed.target.end(), odd) ||
        parsed.version.size() != 8 || !parsed.version.starts_with("HTTP/")) {
        return std::nullopt;
    }
    return parsed;
}

// The fields that decide where a request ends and for whom it is.
struct framing {
    unsigned hosts = 0;
    std::string_view host;
    unsigned lengths = 0;
    std::string_view length;
    unsigned encodings = 0;
    std::string_view encoding;
    std::optional<std::string_view> expected;
};

void note(framing& seen, std::string_view name, std::string_view value) {
    if (base::equal_ignoring_case(name, "Host")) {
        ++seen.hosts;
        seen.host = value;
    } else if (base::equal_ignoring_case(name, "Content-Length")) {
        ++seen.lengths;
        seen.length = value;
    } else if (base::equal_ignoring_case(name, "Transfer-Encoding")) {
        ++seen.encodings;
        seen.encoding = value;
    } else if (base::equal_ignoring_case(name, "Expect")) {
        seen.expected = value;
    }
}

std::optional<request_problem> find_problem_in_fields(std::string_view lines, framing& seen) {
    for (auto line = take_line(lines); !line.empty(); line = take_line(lines)) {
        if (line.front() == ' ' || line.front() == '\t') {
            return bad("folded_line", "A header field is folded over several lines.");
        }
        auto const colon = line.find(':');
        if (colon == line.npos || !is_token(line.substr(0, colon))) {
            return bad("field_name", "A header field has no proper name.");
        }
        auto const value = base::trim(line.substr(colon + 1), base::blanks);
        if (!is_field_value(value)) {
            return bad("field_value", "A header field has a control character in its value.");
        }
        note(seen, line.substr(0, colon), value);
    }
    return std::nullopt;
}

std::optional<request_problem> find_problem_in_host(framing const& seen, bool is_old) {
    if (seen.hosts == 0 && !is_old) {
        return bad("no_host", "The Host field is missing.");
    }
    if (seen.hosts > 1) {
        return bad("two_hosts", "There is more than one Host field.");
    }
    if (!seen.host.empty() && !protocol::is_host(seen.host)) {
        return bad("bad_host", "The Host field is not a host and a port.");
    }
    return std::nullopt;
}

std::optional<request_problem> find_problem_in_length(framing const& seen, bool is_old) {
    if (seen.encodings > 0 && seen.lengths > 0) {
        return bad("two_lengths", "There is a Content-Length beside a Transfer-Encoding.");
    }
    if (seen.lengths > 1 || seen.length.find(',') != seen.length.npos) {
        return bad("two_lengths", "There is more than one Content-Length.");
    }
    if (seen.lengths == 1 && !is_number(seen.length)) {
        return bad("bad_length", "The Content-Length is not a number.");
    }
    if (seen.encodings == 0) {
        return std::nullopt;
    }
    if (is_old) {
        return bad("transfer_encoding", "HTTP/1.0 has no Transfer-Encoding.");
    }
    if (seen.encodings > 1 || !base::equal_ignoring_case(seen.encoding, "chunked")) {
        return request_problem{501, "transfer_encoding",
                               "The only Transfer-Encoding here is chunked, once."};
    }
    return std::nullopt;
}

// `host:port/path` of a target that began with a scheme.
std::optional<request_target> parse_absolute(std::string_view rest) {
    auto const end = std::min(rest.find_first_of("/?"), rest.size());
    auto const host = rest.substr(0, end);
    auto const path = rest.substr(end);
    if (!protocol::is_host(host)) {
        return std::nullopt;
    }
    return request_target{(path.starts_with('/') ? "" : "/") + std::string{path},
                          std::string{host}};
}

} // namespace

head_scanner::state head_scanner::scan(std::string_view bytes) {
    for (; at_ < bytes.size(); ++at_) {
        auto const c = bytes[at_];
        if (at_ == begin_ && c != '\r' && c != '\n' && !is_token_character(c)) {
            return state::garbage; // a TLS client, for instance
        }
        auto const follows_return = at_ > 0 && bytes[at_ - 1] == '\r';
        if (c == '\0' || (c == '\n') != follows_return) {
            return state::garbage;
        }
        if (c != '\n') {
            continue;
        }
        auto const is_empty = at_ - 1 == line_;
        line_ = at_ + 1;
        if (is_empty && line_ - begin_ > line_end.size()) {
            ++at_;
            return state::complete;
        }
        if (is_empty) {
            begin_ = line_;
        }
    }
    return state::incomplete;
}

std::optional<request_problem> find_problem(std::string_view head) {
    auto const line = parse_request_line(take_line(head));
    if (!line) {
        return not_http;
    }
    if (line->version != "HTTP/1.1" && line->version != "HTTP/1.0") {
        return request_problem{505, "version", "This server speaks HTTP/1.1 and HTTP/1.0."};
    }
    auto const is_old = line->version == "HTTP/1.0";
    framing seen;
    if (auto const problem = find_problem_in_fields(head, seen)) {
        return problem;
    }
    if (auto const problem = find_problem_in_host(seen, is_old)) {
        return problem;
    }
    if (auto const problem = find_problem_in_length(seen, is_old)) {
        return problem;
    }
    if (!is_origin_form(line->method, line->target) && !parse_target(line->method, line->target)) {
        return bad("target", "The request target has no form that this method allows.");
    }
    if (seen.expected && !is_old && !base::equal_ignoring_case(*seen.expected, "100-continue")) {
        return request_problem{417, "expect", "The only expectation here is 100-continue."};
    }
    return std::nullopt;
}

bool is_origin_form(std::string_view method, std::string_view target) {
    return method != "CONNECT" && target.starts_with('/') && target.find('#') == target.npos;
}

std::optional<request_target> parse_target(std::string_view method, std::string_view target) {
    if (target.find('#') != target.npos) {
        return std::nullopt;
    }
    if (method == "CONNECT") {
        return protocol::is_host(target) ? std::optional{request_target{}} : std::nullopt;
    }
    if (is_origin_form(method, target)) {
        return request_target{std::string{target}, {}};
    }
    if (target == "*") {
        return method == "OPTIONS" ? std::optional{request_target{}} : std::nullopt;
    }
    auto const mark = target.find("://");
    static constexpr std::array<std::string_view, 4> schemes{"http", "https", "ws", "wss"};
    auto const is_ours = std::any_of(schemes.begin(), schemes.end(), [&](std::string_view scheme) {
        return base::equal_ignoring_case(target.substr(0, mark), scheme);
    });
    return mark != target.npos && is_ours ? parse_absolute(target.substr(mark + 3)) : std::nullopt;
}

} // namespace presenced::server
