# Puts migrations/*.sql into the binary.
#
#   include(embed_migrations)
#   presenced_embed_migrations(<variable>)   -> the generated .cpp, to be compiled into db/
#
# Each file is NNNN_name.sql, numbered from 0001 without gaps, and its first line says which is the
# oldest binary that can still run once it is applied:  -- presenced-oldest-binary: 0.1.0
# Included, this file defines the function; run as a script (cmake -P), it writes the .cpp.
cmake_minimum_required(VERSION 3.25)

if(NOT CMAKE_SCRIPT_MODE_FILE)
    set(PRESENCED_EMBED_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")

    function(presenced_embed_migrations variable)
        set(output "${CMAKE_CURRENT_BINARY_DIR}/migrations.cpp")
        file(GLOB files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/migrations/*.sql")
        add_custom_command(
            OUTPUT "${output}"
            COMMAND "${CMAKE_COMMAND}" "-DDIRECTORY=${PROJECT_SOURCE_DIR}/migrations"
                    "-DOUTPUT=${output}" -P "${PRESENCED_EMBED_SCRIPT}"
            DEPENDS ${files} "${PRESENCED_EMBED_SCRIPT}"
            COMMENT "Embedding migrations"
            VERBATIM)
        set(${variable} "${output}" PARENT_SCOPE)
    endfunction()
    return()
endif()

file(GLOB files "${DIRECTORY}/*.sql")
list(SORT files)
set(entries "")
set(expected 1)
foreach(file IN LISTS files)
    get_filename_component(name "${file}" NAME_WE)
    if(NOT name MATCHES "^([0-9][0-9][0-9][0-9])_[a-z0-9_]+$")
        message(FATAL_ERROR "${file}: a migration is called NNNN_name.sql")
    endif()
    string(REGEX REPLACE "^0+" "" number "${CMAKE_MATCH_1}")
    if(NOT number EQUAL expected)
        message(FATAL_ERROR "${file}: the next migration has number ${expected}")
    endif()
    math(EXPR expected "${expected} + 1")

    file(READ "${file}" sql)
    if(NOT sql MATCHES "^-- presenced-oldest-binary: ([0-9]+\\.[0-9]+\\.[0-9]+)\n")
        message(FATAL_ERROR "${file}: the first line is `-- presenced-oldest-binary: X.Y.Z`")
    endif()
    string(APPEND entries
        "        {${number}, \"${name}\", R\"presenced_sql(${sql})presenced_sql\", \"${CMAKE_MATCH_1}\"},\n")
endforeach()

file(WRITE "${OUTPUT}" "// Generated from migrations/ by cmake/embed_migrations.cmake.
#include \"db/session/migrations.hpp\"

namespace presenced::db {

std::vector<migration> const& migrations() {
    static std::vector<migration> const all{
${entries}    };
    return all;
}

} // namespace presenced::db
")
