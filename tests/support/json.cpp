// nlohmann::json for every test. A build with precompiled headers declares it extern
// (cmake/precompiled/tests.hpp), which saves each test some seconds of compiling.
#include <nlohmann/json.hpp>

template class nlohmann::basic_json<>;
