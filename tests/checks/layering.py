#!/usr/bin/env python3
"""Checks who includes whom: data flows server -> protocol, presence, db; db -> presence;
everybody -> base.

Folder = library = namespace. What a folder may include, of ours and of others', is written below;
anything else is an error. Run from the top of the checkout.
"""
import re
import sys

from sources import sources

OURS = {"base", "protocol", "presence", "db", "clients", "server", "tests", "bench"}

# room: the rooms it may include, besides itself. A room is a folder, or a folder in a folder: what
# stands further down knows nothing of what stands above it.
ALLOWED = {
    "base": set(),
    "protocol": {"base"},
    "presence": {"base"},
    "db/session": {"base", "presence"},
    "db/store": {"base", "presence", "db/session"},
    "db/admin": {"base", "presence", "db/session", "db/store"},
    "clients/cpp": {"base", "protocol"},
}
BELOW_SERVER = {"base", "protocol", "presence", "db/session", "db/store", "db/admin"}
SERVER_ROOMS = ["loop", "node", "auth", "cable", "http", "app", "cli"]
for number, room in enumerate(SERVER_ROOMS):
    ALLOWED["server/" + room] = BELOW_SERVER | {"server/" + r for r in SERVER_ROOMS[:number]}
ALLOWED["server/cli"] |= {"clients/cpp"}
# main.cpp stands in server/app, and is the one file that knows the command line.
EXCEPTIONS = {("server/app/main.cpp", "server/cli/commands.hpp")}

# library: (how its headers look, files that may include it)
LIBRARIES = {
    "nlohmann_json": (r"nlohmann/",
                      r"^(protocol/codec\.cpp|server/(cli/\w+|node/log)\.cpp|tests/|bench/)"),
    # Some headers of db/ show libpqxx or libpq, and are for its .cpp files alone.
    "libpqxx": (r"(pqxx/|libpq-fe\.h)",
                r"^(db/\w+/\w+\.cpp|db/session/(pqxx_port|command_session|dialer|session|error_fields)"
                r"\.hpp|tests/|bench/)"),
    "a header with libpqxx": (r"db/session/(pqxx_port|command_session|dialer|session)\.hpp",
                              r"^(db/\w+/\w+\.cpp|db/session/(command_session|session)\.hpp|tests/)"),
    "Asio": (r"boost/asio", r"^(clients/|server/|cmake/|tests/|bench/)"),
    "Beast": (r"boost/beast",
              r"^(clients/cpp/\w+\.cpp|server/cable/(websocket\.cpp|websocket_factory\.hpp)|"
              r"server/http/\w+\.(cpp|hpp)|server/cli/commands_health\.cpp|tests/|bench/)"),
    "Boost": (r"boost/", r"^(clients/|server/|cmake/|tests/|bench/)"),
    "spdlog": (r"spdlog/", r"^(db/\w+/\w+\.cpp|server/\w+/\w+\.cpp|cmake/|tests/|bench/)"),
    "CLI11": (r"CLI/", r"^(server/cli/\w+|bench/main|tests/ghosts/ghosts)\.cpp"),
    "prometheus-cpp": (r"prometheus/", r"^server/node/metrics\.cpp"),
    "OpenSSL": (r"openssl/", r"^(server/\w+/\w+\.cpp|tests/|bench/)"),
    "Catch2": (r"catch2/", r"^(tests/support/catch\.hpp|cmake/)"),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def room_of(path):
    parts = path.split("/")
    room = "/".join(parts[:2])
    return room if room in ALLOWED else parts[0]


def problems_of(path, text):
    room = room_of(path)
    for kind, target in INCLUDE.findall(text):
        if kind == '"' and target.split("/")[0] in OURS:
            other = room_of(target)
            if (room in ALLOWED and other != room and other not in ALLOWED[room]
                    and (path, target) not in EXCEPTIONS):
                yield f"{path}: {room}/ may not include {target}"
        elif kind == '"':
            yield f'{path}: "{target}": name it from the top of the checkout'
        for library, (looks, may) in LIBRARIES.items():
            if re.match(looks, target) and not re.search(may, path):
                yield f"{path}: {library} ({target}) stays out of here"


def main():
    paths = sources()
    problems = [p for path in paths for p in problems_of(path, open(path, encoding="utf-8").read())]
    print("\n".join(problems) if problems else f"{len(paths)} files keep to the layers")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
