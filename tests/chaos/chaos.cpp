// Nodes, clients and everything that can go wrong with them, for a while; writes what happened as a
// history, which judge.py holds against the promises. Says nothing about right or wrong itself,
// except for a node that crashes.
#include "tests/chaos/clients.hpp"
#include "tests/chaos/stage.hpp"

#include <cstring>
#include <iostream>
#include <queue>

namespace presenced::tests {

namespace {

struct occasion {
    milliseconds at;
    bool is_end;
    fault what;
    bool operator>(occasion const& other) const { return at > other.at; }
};

int run(stage_options const& options, milliseconds length) {
    stage everything{options};
    auto& log = everything.log();
    auto const plan = make_plan(options.seed, length, everything.size());
    std::priority_queue<occasion, std::vector<occasion>, std::greater<>> occasions;
    for (auto const& f : plan) {
        occasions.push({f.at, false, f});
    }
    auto const start = steady::now();
    log.write("start");
    while (!occasions.empty() || since(start) < length) {
        everything.look_after_nodes();
        while (!occasions.empty() && occasions.top().at <= since(start)) {
            auto const next = occasions.top();
            occasions.pop();
            if (next.is_end) {
                everything.end(next.what);
            } else {
                everything.begin(next.what);
                occasions.push({std::max(next.at + next.what.length, next.at), true, next.what});
            }
        }
        std::this_thread::sleep_for(10ms);
    }
    // From here on nothing is wrong any more, and soon everything has to be well.
    log.write("calm");
    everything.ask_again_who_is_ready();
    auto const calm = steady::now();
    if (!eventually(
            [&] {
                everything.look_after_nodes();
                return everything.all_ready() && since(calm) > 6s;
            },
            patience)) {
        log.write("not_ready");
    }
    everything.clients_leave();
    static_cast<void>(eventually([&] { return everything.is_empty(); }, 6s));
    // For the observer to see it: the snapshot after the next began later than now, and is written
    // once another has been taken.
    auto const taken = everything.snapshots();
    if (!eventually([&] { return everything.snapshots() >= taken + 3; }, patience)) {
        log.write("not_observed");
    }
    log.write("end");
    everything.nodes_leave();
    return everything.casualties() == 0 ? 0 : 1;
}

void show_plan(stage_options const& options, milliseconds length) {
    for (auto const& f : make_plan(options.seed, length, {options.nodes, options.processes, 12})) {
        std::cout << static_cast<double>(f.at.count()) / 1e3 << " s  " << f.kind << ' ' << f.target
                  << "  for " << static_cast<double>(f.length.count()) / 1e3 << " s\n";
    }
}

} // namespace

} // namespace presenced::tests

// chaos run HISTORY SEED SECONDS [CLIENTS [FUNCTIONS]]
// chaos plan SEED SECONDS
// chaos clients PLAN (by itself)
int main(int argc, char** argv) {
    using namespace presenced::tests;
    std::vector<std::string> const words(argv, argv + argc);
    try {
        if (argc == 3 && words[1] == "clients") {
            return run_clients(words[2]);
        }
        stage_options options;
        options.self = std::filesystem::read_symlink("/proc/self/exe");
        options.wrong_clock =
            std::filesystem::path{options.self}.parent_path() / "libwrong_clock.so";
        if (argc == 4 && words[1] == "plan") {
            options.seed = static_cast<unsigned>(std::stoul(words[2]));
            show_plan(options, std::chrono::seconds{std::stoi(words[3])});
            return 0;
        }
        if (argc < 5 || words[1] != "run") {
            std::cerr << "usage: chaos run HISTORY SEED SECONDS [CLIENTS [FUNCTIONS]]\n"
                         "       chaos plan SEED SECONDS\n"
                         "script/chaos calls this, and the judge.\n";
            return 2;
        }
        options.history = words[2];
        options.seed = static_cast<unsigned>(std::stoul(words[3]));
        if (argc > 5) {
            options.clients = std::stoi(words[5]);
        }
        if (argc > 6) {
            options.functions = words[6];
        }
        return run(options, std::chrono::seconds{std::stoi(words[4])});
    } catch (std::exception const& e) {
        std::cerr << "chaos: " << e.what() << '\n';
        return 3;
    }
}
