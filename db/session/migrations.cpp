#include "db/session/migrations.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>

namespace presenced::db {

namespace {

std::array<int, 3> parse_version(std::string_view text) {
    std::array<int, 3> parts{};
    for (auto& part : parts) {
        auto const [stop, error] = std::from_chars(text.data(), text.data() + text.size(), part);
        if (error != std::errc{}) {
            break;
        }
        text.remove_prefix(std::min(static_cast<std::size_t>(stop - text.data()) + 1, text.size()));
    }
    return parts;
}

std::string newest_of_ours() {
    return std::string{migrations().back().name};
}

} // namespace

std::optional<std::string> strange_history(std::vector<applied_migration> const& applied,
                                           std::string_view binary_version) {
    auto const& ours = migrations();
    for (std::size_t i = 0; i < applied.size(); ++i) {
        auto const& there = applied[i];
        if (i < ours.size()) {
            if (there.number != ours[i].number || there.name != ours[i].name) {
                return "presenced_migrations says " + there.name + " where presenced " +
                       std::string{binary_version} + " has " + std::string{ours[i].name} +
                       "; this database belongs to another build of presenced";
            }
        } else if (parse_version(there.oldest_binary) > parse_version(binary_version)) {
            return "the schema is at " + applied.back().name + ", and " + there.name +
                   " needs presenced " + there.oldest_binary + " or newer; this is presenced " +
                   std::string{binary_version} + ": run a newer one";
        }
    }
    return std::nullopt;
}

std::string_view built_version() {
    return PRESENCED_VERSION;
}

std::optional<std::string> misfit(std::vector<applied_migration> const& applied,
                                  std::string_view binary_version) {
    if (auto why = strange_history(applied, binary_version)) {
        return why;
    }
    if (applied.size() < migrations().size()) {
        return "the schema is at " + (applied.empty() ? "nothing" : applied.back().name) +
               " and presenced " + std::string{binary_version} + " needs " + newest_of_ours() +
               ": run `presenced migrate`";
    }
    return std::nullopt;
}

} // namespace presenced::db
