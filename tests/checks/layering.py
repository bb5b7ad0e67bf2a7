#!/usr/bin/env python3
"""Checks who includes whom: data flows server -> protocol, presence, db; db -> presence;
everybody -> base.

Folder = library = namespace. What a folder may include, of ours and of others', is written below;
anything else is an error. Run from the top of the checkout.
"""
import re
import sys

from sources import sources

OURS = {"base", "protocol", "presence", "db", "server", "tests", "bench"}

# folder: (our folders it may include, libraries it may include, file patterns for the latter)
ALLOWED = {
    "base": ({"base"}, {}),
    "protocol": ({"protocol", "base"}, {}),
    "presence": ({"presence", "base"}, {}),
    "db": ({"db", "presence", "base"}, {}),
    "server": ({"server", "protocol", "presence", "db", "base"}, {}),
}

# library: (how its headers look, files that may include it)
LIBRARIES = {
    "nlohmann_json": (r"nlohmann/", r"^(protocol/codec\.cpp|server/(commands\w*|log)\.cpp|tests/|bench/)"),
    # Three headers of db/ show libpqxx or libpq, and are for its .cpp files alone.
    "libpqxx": (r"(pqxx/|libpq-fe\.h)",
                r"^(db/\w+\.cpp|db/(pqxx_port|command_session|dialer|session|error_fields)\.hpp|tests/|bench/)"),
    "a header with libpqxx": (r"db/(pqxx_port|command_session|dialer|session|error_fields)\.hpp", r"^(db/\w+\.cpp|db/(command_session|session)\.hpp|tests/)"),
    "Asio": (r"boost/asio", r"^(server/|tests/|bench/)"),
    "Beast": (r"boost/beast",
              r"^(server/(asio_impl|websocket|http_session|http_exchange|cable_client|commands_health)\.cpp|"
              r"server/websocket_factory\.hpp|tests/|bench/)"),
    "Boost": (r"boost/", r"^(server/|tests/|bench/)"),
    "spdlog": (r"spdlog/", r"^(db/\w+\.cpp|server/\w+\.cpp|tests/|bench/)"),
    "CLI11": (r"CLI/", r"^(server/commands\w*|bench/main)\.cpp"),
    "prometheus-cpp": (r"prometheus/", r"^server/metrics\.cpp"),
    "OpenSSL": (r"openssl/", r"^(server/\w+\.cpp|tests/|bench/)"),
    "Catch2": (r"catch2/", r"^tests/support/catch\.hpp"),
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.M)


def problems_of(path, text):
    folder = path.split("/")[0]
    for kind, target in INCLUDE.findall(text):
        top = target.split("/")[0]
        if top in OURS and kind == '"':
            if folder in ALLOWED and top not in ALLOWED[folder][0]:
                yield f"{path}: {folder}/ may not include {target}"
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
