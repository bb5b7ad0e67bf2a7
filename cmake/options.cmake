# Language level, warnings, and the folder-is-a-library rule.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

# Precompiled headers hide an include that is missing: the presets release and tidy are without.
option(PRESENCED_PRECOMPILE "Precompile the headers that most sources include" OFF)

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    if(PRESENCED_PRECOMPILE)
        # What ccache's manual asks for where headers are precompiled.
        set(CMAKE_CXX_COMPILER_LAUNCHER
            ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${CCACHE})
        if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
            add_compile_options(-fpch-preprocess)
        endif()
    else()
        set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
    endif()
endif()

option(PRESENCED_WERROR "Treat warnings as errors" OFF)
set(PRESENCED_SANITIZE "" CACHE STRING "Sanitizers for everything, e.g. address,undefined or thread")
# The checks of UBSan before every use of a pointer are a third of the compiler's time.
set(PRESENCED_SANITIZE_LESS "" CACHE STRING "Checks of these sanitizers to do without")

add_library(presenced_options INTERFACE)
target_include_directories(presenced_options INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_options(presenced_options INTERFACE
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion
    $<$<BOOL:${PRESENCED_WERROR}>:-Werror>)

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC bug 105651: a false alarm in std::string's operator+.
    target_compile_options(presenced_options INTERFACE -Wno-restrict)
endif()

if(PRESENCED_SANITIZE)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        # Instrumented code raises false alarms here, as GCC's manual says of -fsanitize.
        target_compile_options(presenced_options INTERFACE -Wno-maybe-uninitialized)
    endif()
    add_compile_options(-fsanitize=${PRESENCED_SANITIZE} -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${PRESENCED_SANITIZE})
    if(PRESENCED_SANITIZE_LESS)
        add_compile_options(-fno-sanitize=${PRESENCED_SANITIZE_LESS})
    endif()
    if(PRESENCED_SANITIZE MATCHES "undefined")
        add_compile_options(-fno-sanitize-recover=all)
    endif()
    if(PRESENCED_SANITIZE MATCHES "thread")
        # TSan does not understand the fences that Asio has beside its mutexes.
        add_compile_definitions(BOOST_ASIO_DISABLE_FENCED_BLOCK)
    endif()
endif()

# presenced_precompile(<target> <name>): with cmake/precompiled/<name>.hpp.
function(presenced_precompile target name)
    if(PRESENCED_PRECOMPILE)
        target_precompile_headers(${target} PRIVATE
            "${PROJECT_SOURCE_DIR}/cmake/precompiled/${name}.hpp")
    endif()
endfunction()

# presenced_library(<folder> <sources...>): the static library of one folder.
function(presenced_library name)
    add_library(presenced_${name} STATIC ${ARGN})
    add_library(presenced::${name} ALIAS presenced_${name})
    target_link_libraries(presenced_${name} PUBLIC presenced_options)
endfunction()
