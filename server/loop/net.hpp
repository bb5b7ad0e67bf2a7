// Names for Asio, and the socket type of this server: bound to one shard's io_context, without
// type erasure, which costs every idle connection a kilobyte and more.
#pragma once

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/error_code.hpp>

namespace presenced::server {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using executor = asio::io_context::executor_type;
using tcp_socket = asio::basic_stream_socket<tcp, executor>;
using boost::system::error_code;

} // namespace presenced::server
