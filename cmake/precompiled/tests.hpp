#pragma once

#include "cmake/precompiled/standard.hpp"

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>

#include <nlohmann/json.hpp>

#include "tests/support/catch.hpp"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

// Compiled once, in tests/support/json.cpp.
extern template class nlohmann::basic_json<>;
