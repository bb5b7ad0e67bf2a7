// Where the run takes place: PostgreSQL, nodes behind proxies on both sides, client processes; and
// what can go wrong with each of them. One thread.
#pragma once

#include "tests/chaos/canary.hpp"
#include "tests/chaos/history.hpp"
#include "tests/chaos/observer.hpp"
#include "tests/chaos/plan.hpp"
#include "tests/support/node.hpp"
#include "tests/support/process.hpp"
#include "tests/support/tcp_proxy.hpp"
#include "tests/support/world.hpp"

#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace presenced::tests {

struct stage_options {
    std::string self;        // this program, which is the client processes' too
    std::string history;     // path
    std::string wrong_clock; // path of the library that is preloaded into nodes
    std::string functions;   // path of SQL whose functions replace those of the schema; or empty
    unsigned seed = 0;
    int nodes = 3;
    int processes = 8;
    int clients = 400;
};

class stage {
public:
    explicit stage(stage_options options);
    ~stage();

    history& log() { return log_; }
    stage_size size() const;

    void begin(fault const& f);
    void end(fault const& f);
    // Notes who has become ready or has ended, and starts those anew that ended by themselves.
    void look_after_nodes();
    bool all_ready() const;
    // Every node has to say anew that it is ready: one that was may not be so after a fault.
    void ask_again_who_is_ready();
    // Everybody leaves: clients, then nodes.
    void clients_leave();
    bool is_empty();
    void nodes_leave();
    // Nodes that ended as they should not have.
    int casualties() const { return casualties_; }
    // How many the observer has taken so far.
    long snapshots() const { return observer_->snapshots(); }

private:
    struct place {
        std::uint16_t port = 0; // the node's, the same after a restart
        std::unique_ptr<tcp_proxy> door;
        std::unique_ptr<tcp_proxy> wire;
        std::unique_ptr<node> process;
        std::string name;
        std::int64_t clock = 0; // by how many seconds its wall clock is wrong
        int boots = 0;
        bool ready = false;
        bool expected = true; // to run
        bool frozen = false;
        steady::time_point told_to_end;
    };
    struct troupe {
        std::unique_ptr<process> processes;
        int incarnation = 0;
    };

    void replace_functions(std::string const& path);
    void start_node(int i);
    void end_node(int i, int signal, milliseconds limit);
    void start_clients(int slot);
    std::string clock_file(int i) const;
    void set_clock(int i, unsigned choice);
    // Throws std::runtime_error when a node that has just started goes by another clock.
    static void check_clock(place const& n);
    // Runs a statement as psql would; gives up waiting for a lock after a second.
    std::vector<std::vector<std::string>> by_hand(std::string const& sql);
    // Locks in a session that stays open until release().
    void lock(fault const& f, std::string const& sql);
    void release(fault const& f);

    stage_options options_;
    history log_;
    postgres database_;
    std::unique_ptr<world> world_;
    std::vector<std::int64_t> hot_;   // wanderers' agents
    std::vector<std::int64_t> homes_; // residents'
    std::vector<std::int64_t> idle_;  // nobody's
    std::vector<std::string> tokens_;
    std::vector<place> nodes_;
    std::vector<troupe> troupes_;
    std::map<std::string, std::unique_ptr<sql_session>> locks_;
    std::unique_ptr<observer> observer_;
    std::unique_ptr<canary> canary_;
    int last_process_ = 0;
    int casualties_ = 0;
};

} // namespace presenced::tests
