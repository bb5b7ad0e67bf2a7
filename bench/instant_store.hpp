// A store that says yes to everything at once and keeps nothing: what a server costs without its
// database, and so what a database can cost at most.
#pragma once

#include "server/app/app.hpp"

namespace presenced::bench {

server::store_source instant();

} // namespace presenced::bench
