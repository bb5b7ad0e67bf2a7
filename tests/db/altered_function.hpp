// The functions of the schema, answering something else.
#pragma once

#include "tests/db/node.hpp"

#include <string>
#include <utility>

namespace presenced::tests {

// A function of somebody else's in the place of one of the schema's: it does what the real one
// does, and `change` says afterwards what it answers instead.
class altered_function {
public:
    altered_function(world& where, std::string name, std::string const& change)
        : world_{where}
        , name_{std::move(name)} {
        auto const proc = "FROM pg_proc p WHERE p.oid = '" + name_ + "'::regproc";
        arguments_ = world_.sql.value("SELECT pg_get_function_arguments(p.oid) " + proc);
        auto const names = [&](std::string const& mode) {
            return world_.sql.value(
                "SELECT string_agg(a.name, ', ' ORDER BY a.n) FROM (SELECT p.* " + proc +
                ") p, unnest(p.proargnames, p.proargmodes) WITH " +
                "ORDINALITY AS a (name, mode, n) WHERE a.mode = '" + mode + "'");
        };
        given_ = names("i");
        answered_ = names("o");
        world_.sql.query("ALTER FUNCTION " + name_ + " RENAME TO real_function");
        define(change);
        world_.sql.query("GRANT EXECUTE ON FUNCTION real_function, " + name_ + " TO PUBLIC");
    }
    // From now on it answers what the real one does.
    void end() { define("NULL"); }

private:
    void define(std::string const& change) {
        world_.sql.query("CREATE OR REPLACE FUNCTION " + name_ + "(" + arguments_ +
                         ") LANGUAGE plpgsql AS $$ BEGIN SELECT r.* FROM real_function(" + given_ +
                         ") r INTO " + answered_ + "; " + change + "; END $$");
    }

    world& world_;
    std::string name_;
    std::string arguments_;
    std::string given_;
    std::string answered_;
};

} // namespace presenced::tests
