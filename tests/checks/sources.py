"""The sources that the checks read. No git: a tree that came as an archive is checked, too."""
import pathlib
import sys

FOLDERS = ("base", "protocol", "presence", "db", "server", "tests", "bench")


def sources():
    """Paths of all .cpp and .hpp, from the top of the checkout, where checks are run."""
    paths = sorted(
        path.as_posix() for folder in FOLDERS for path in pathlib.Path(folder).rglob("*.[ch]pp")
        if "node_modules" not in path.parts)
    if not paths:
        sys.exit("no sources found: run this from the top of the checkout")
    return paths
