#pragma once

#include "cmake/precompiled/log.hpp"
#include "cmake/precompiled/standard.hpp"

#include <pqxx/pqxx>
