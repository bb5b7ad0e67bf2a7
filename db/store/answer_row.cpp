#include "db/store/answer_row.hpp"

#include "db/store/arrays.hpp"

#include <charconv>
#include <system_error>

namespace presenced::db {

namespace {

row const& only_row(rows const& answer, std::size_t columns) {
    if (answer.size() != 1 || answer.front().size() != columns) {
        throw unreadable_answer{"not one row of " + std::to_string(columns) + " columns"};
    }
    return answer.front();
}

} // namespace

answer_row::answer_row(rows const& answer, std::size_t columns)
    : fields_{only_row(answer, columns)} {}

std::int64_t answer_row::number(std::size_t column) const {
    auto const value = optional_number(column);
    if (!value) {
        throw unreadable_answer{"NULL in column " + std::to_string(column + 1)};
    }
    return *value;
}

std::optional<std::int64_t> answer_row::optional_number(std::size_t column) const {
    auto const& field = fields_.at(column);
    if (!field) {
        return std::nullopt;
    }
    std::int64_t value = 0;
    auto const* const end = field->data() + field->size();
    auto const [stop, error] = std::from_chars(field->data(), end, value);
    if (error != std::errc{} || stop != end) {
        throw unreadable_answer{"no number in column " + std::to_string(column + 1)};
    }
    return value;
}

std::vector<std::string> answer_row::elements(std::size_t column) const {
    auto const& field = fields_.at(column);
    return field ? parse_array(*field) : std::vector<std::string>{};
}

std::string_view answer_row::text(std::size_t column) const {
    auto const& field = fields_.at(column);
    return field ? std::string_view{*field} : std::string_view{};
}

} // namespace presenced::db
