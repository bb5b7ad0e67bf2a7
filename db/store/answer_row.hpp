// The one row that a function of the schema answers with.
#pragma once

#include "db/session/connection.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace presenced::db {

// Every member throws unreadable_answer (db/store/arrays.hpp) where the answer is not what it says.
class answer_row {
public:
    // One row of so many columns. `answer` has to outlive this.
    answer_row(rows const& answer, std::size_t columns);

    std::int64_t number(std::size_t column) const;
    std::optional<std::int64_t> optional_number(std::size_t column) const;
    // The elements of an array; none when it is NULL.
    std::vector<std::string> elements(std::size_t column) const;
    bool is_true(std::size_t column) const { return fields_.at(column) == "t"; }

    // The column as it is; empty when it is NULL.
    std::string_view text(std::size_t column) const;

private:
    row const& fields_;
};

} // namespace presenced::db
