// Catch2 as it is installed: version 3 (Debian 13) or 2 (Debian 12). Tests include this, never
// Catch2 itself, and link Catch2::Catch2WithMain, which exists in both.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif
