// The schema's migrations, embedded in the binary, and whether this binary can run where others
// were applied. Pure, any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

struct migration {
    int number;
    std::string_view name; // "0001_presence"
    std::string_view sql;
    std::string_view oldest_binary; // oldest presenced that can run once this is applied
};

// As presenced_migrations has it.
struct applied_migration {
    int number;
    std::string name;
    std::string oldest_binary;
};

// Why these migrations are none of this build's: another name where one of ours is expected, or one
// that needs a newer binary. Nothing when they are a beginning of ours, or all of ours and newer
// ones that allow this version.
std::optional<std::string> strange_history(std::vector<applied_migration> const& applied,
                                           std::string_view binary_version);

// Why presenced of this version cannot run on a schema to which these were applied, in order, with
// the cure; nothing when it can.
std::optional<std::string> misfit(std::vector<applied_migration> const& applied,
                                  std::string_view binary_version);

// In order; generated from migrations/ at build time.
std::vector<migration> const& migrations();

// The version of this build of presenced: "0.1.0".
std::string_view built_version();

} // namespace presenced::db
