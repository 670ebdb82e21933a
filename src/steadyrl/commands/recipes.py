"""`steadyrl recipes`."""

import argparse

from steadyrl.recipe.shipped import find, names


def main(argv: list[str]) -> int:
    """List the recipes that come with SteadyRL, or print one."""
    parser = argparse.ArgumentParser("steadyrl recipes", description="List the recipes that come with SteadyRL.")
    parser.add_argument("name", nargs="?", help="print this one, comments included, to start your own from")
    name = parser.parse_args(argv).name
    if name is not None:
        print(find(name).read_text(encoding="utf-8"), end="")
        return 0
    for known in names():
        first, *_ = find(known).read_text(encoding="utf-8").splitlines()
        print(f"{known:<16} {first.removeprefix('# ')}")
    return 0
