// What a command is told when the database does not do what it should.
#pragma once

#include <stdexcept>

namespace presenced::db {

// A problem that the operator must solve; what() is one line that names the thing and the cure.
class schema_error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// The database cannot be reached, or not just now (as opposed to: was reached and is not fit).
// Trying again may help.
class unreachable_error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

} // namespace presenced::db
