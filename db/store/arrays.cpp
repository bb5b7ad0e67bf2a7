#include "db/store/arrays.hpp"

namespace presenced::db {

void array_literal::separate() {
    if (text_.size() > 1) {
        text_ += ',';
    }
}

void array_literal::add(std::string_view text) {
    separate();
    text_ += '"';
    for (char const c : text) {
        if (c == '"' || c == '\\') {
            text_ += '\\';
        }
        text_ += c;
    }
    text_ += '"';
}

void array_literal::add(std::int64_t number) {
    separate();
    text_ += std::to_string(number);
}

void array_literal::add_null() {
    separate();
    text_ += "NULL";
}

std::string array_literal::take() {
    text_ += '}';
    return std::move(text_);
}

std::vector<std::string> parse_array(std::string_view text) {
    if (text.size() < 2 || text.front() != '{' || text.back() != '}') {
        throw unreadable_answer{"not an array"};
    }
    std::vector<std::string> elements;
    std::size_t at = 1;
    auto const end = text.size() - 1;
    while (at < end) {
        std::string element;
        if (text[at] == '"') {
            for (++at; at < end && text[at] != '"'; ++at) {
                if (text[at] == '\\') {
                    ++at;
                }
                element += text[at];
            }
            if (at >= end) {
                throw unreadable_answer{"array ends within quotes"};
            }
            ++at;
        } else {
            while (at < end && text[at] != ',') {
                if (text[at] == '{' || text[at] == '}') {
                    throw unreadable_answer{"array of arrays"};
                }
                element += text[at++];
            }
            if (element == "NULL") {
                element.clear();
            }
        }
        elements.push_back(std::move(element));
        if (at < end && text[at++] != ',') {
            throw unreadable_answer{"array elements are not separated"};
        }
    }
    return elements;
}

} // namespace presenced::db
