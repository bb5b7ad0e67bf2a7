#!/usr/bin/env python3
"""Prints a table of what llvm-cov exports as JSON, for the files that begin as the arguments do."""
import json
import os
import sys


def row(name, summary):
    cells = []
    for kind in ("lines", "regions", "functions"):
        part = summary[kind]
        cells.append(f"{part['covered']:>6} of {part['count']:<5} {part['percent']:6.1f} %")
    print(f"{name:32} " + "   ".join(cells))


def main():
    files = json.load(sys.stdin)["data"][0]["files"]
    top = os.getcwd() + "/"
    print(f"{'':32} {'lines':23}   {'regions':23}   {'functions':23}")
    total = {}
    for entry in sorted(files, key=lambda f: f["filename"]):
        name = os.path.normpath(entry["filename"]).removeprefix(top)
        if not name.startswith(tuple(sys.argv[1:])):
            continue
        row(name, entry["summary"])
        folder = total.setdefault(name.split("/")[0] + "/", {})
        for kind in ("lines", "regions", "functions"):
            part = folder.setdefault(kind, {"covered": 0, "count": 0})
            part["covered"] += entry["summary"][kind]["covered"]
            part["count"] += entry["summary"][kind]["count"]
    for name, summary in sorted(total.items()):
        for part in summary.values():
            part["percent"] = 100 * part["covered"] / max(part["count"], 1)
        row(f"{name} in all", summary)


if __name__ == "__main__":
    main()
