// Which WebSocket subprotocol to answer (RFC 6455 section 4.2.2, Action Cable's names).
#pragma once

#include <string_view>

namespace presenced::protocol {

// The first known name that the client offers, in its order: actioncable-v1-json or
// actioncable-unsupported; empty when it offers none or none known, and then the handshake goes on
// without the header. `offered` is the value of Sec-WebSocket-Protocol; several headers are one
// list, joined by commas (RFC 7230 section 3.2.2). Names are compared exactly.
// The result is a constant, alive as long as the program.
std::string_view choose_subprotocol(std::string_view offered) noexcept;

} // namespace presenced::protocol
