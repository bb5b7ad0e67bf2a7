// What a statement returns, in PostgreSQL's text form.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace presenced::db {

using row = std::vector<std::optional<std::string>>;
using rows = std::vector<row>;

} // namespace presenced::db
