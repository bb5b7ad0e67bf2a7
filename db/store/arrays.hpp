// PostgreSQL's text form of one-dimensional arrays, to pass whole batches as parameters.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace presenced::db {

// Builds `{...}`. Text is quoted always, so that no element can be taken for NULL or syntax.
class array_literal {
public:
    void add(std::string_view text);
    void add(std::int64_t number);
    void add_null();
    // The finished literal; the builder is spent.
    std::string take();

private:
    void separate();

    std::string text_ = "{";
};

// An answer of the database that this binary does not understand.
class unreadable_answer : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The elements of a one-dimensional array as PostgreSQL prints it; NULL becomes an empty string.
// Throws unreadable_answer when it is no such array.
std::vector<std::string> parse_array(std::string_view text);

} // namespace presenced::db
