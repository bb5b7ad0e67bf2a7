#include "server/http/router.hpp"

#include "base/text.hpp"

#include <algorithm>
#include <utility>

namespace presenced::server {

namespace {

std::string_view take_segment(std::string_view& path) {
    auto const end = std::min(path.find('/', 1), path.size());
    auto const segment = path.substr(0, end);
    path.remove_prefix(end);
    return segment;
}

// What stood for the segments in braces; nothing when the path is another one.
std::optional<std::vector<std::string>> match_path(std::string_view pattern,
                                                   std::string_view path) {
    std::vector<std::string> captured;
    while (!pattern.empty() && !path.empty()) {
        auto const wanted = take_segment(pattern);
        auto const segment = take_segment(path);
        if (wanted.starts_with("/{") && segment.size() > 1) {
            captured.emplace_back(segment.substr(1));
        } else if (wanted != segment) {
            return std::nullopt;
        }
    }
    return pattern.empty() && path.empty() ? std::optional{std::move(captured)} : std::nullopt;
}

bool answers(route const& r, std::string_view method) {
    return r.method == method || (r.method == "GET" && method == "HEAD");
}

} // namespace

void router::add(route r) {
    routes_.push_back(std::move(r));
}

std::string router::methods_of(std::string_view path) const {
    std::vector<std::string> methods;
    for (auto const& r : routes_) {
        if (path.empty() || match_path(r.pattern, path)) {
            methods.push_back(r.method);
            if (r.method == "GET") {
                methods.emplace_back("HEAD");
            }
        }
    }
    std::sort(methods.begin(), methods.end());
    methods.erase(std::unique(methods.begin(), methods.end()), methods.end());
    std::string list;
    for (auto const& m : methods) {
        list += (list.empty() ? "" : ", ") + m;
    }
    return list;
}

std::variant<router::found, http_answer> router::match(std::string_view method,
                                                       std::string_view path) const {
    for (auto const& r : routes_) {
        if (!answers(r, method)) {
            continue;
        }
        if (auto captured = match_path(r.pattern, path)) {
            return found{&r.handle, r.body_type, std::move(*captured)};
        }
    }
    if (auto methods = methods_of(path); !methods.empty()) {
        auto refusal = refuse(405, "This method is not allowed here.");
        refusal.fields.emplace_back("Allow", std::move(methods));
        return refusal;
    }
    if (otherwise_) {
        return found{&otherwise_, {}, {}};
    }
    return refuse(404, "Page not found");
}

std::optional<http_answer> refuse_body(router::found const& to, std::string_view type,
                                       std::optional<std::uint64_t> length) {
    if (length && *length > body_limit) {
        return refuse(413, "The body is larger than 1 MiB.");
    }
    auto const media = base::trim(type.substr(0, type.find(';')), base::blanks);
    if (!to.body_type.empty() && length != 0U && !base::equal_ignoring_case(media, to.body_type)) {
        auto refusal = refuse(415, "The body must be " + std::string{to.body_type} + ".");
        refusal.fields.emplace_back("Accept", std::string{to.body_type});
        return refusal;
    }
    return std::nullopt;
}

} // namespace presenced::server
