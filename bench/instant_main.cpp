// presenced without a database: the ceiling that the benchmarks compare with. Takes the settings
// of `presenced serve` from the environment.
#include "bench/instant_store.hpp"
#include "server/node/config.hpp"
#include "server/node/log.hpp"

#include <exception>
#include <iostream>

int main() {
    try {
        auto const settings =
            presenced::server::parse_config(presenced::server::process_source({}));
        presenced::server::set_up_log(settings.log);
        return presenced::server::serve(settings, presenced::bench::instant());
    } catch (std::exception const& e) {
        std::cerr << "presenced-instant: " << e.what() << '\n';
        return 1;
    }
}
