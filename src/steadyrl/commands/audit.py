"""`steadyrl audit RECIPE`."""

import argparse

from steadyrl.commands.flags import with_flags
from steadyrl.recipe import Recipe, shipped
from steadyrl.start import import_torch


def main(argv: list[str]) -> int:
    """Audit the verifier of a recipe."""
    parser = argparse.ArgumentParser(
        "steadyrl audit",
        description="Try right responses and junk on a few dozen problems, and show what is paid. The exit status is "
        "1 where junk is paid or a right response is not. Fields of the recipe are changed as with `train`.",
    )
    parser.add_argument("recipe", help="a TOML file, the name of one of ours, or the recipe.json of a run")
    parser.add_argument("--json", action="store_true", help="print the counts and the rows as JSON")
    parser.add_argument("--strict", action="store_true", help="also count what is partial, doubtful or failed")
    options, rest = parser.parse_known_args(argv)
    recipe = with_flags(Recipe, shipped.read(options.recipe), rest, f"steadyrl audit {options.recipe}")
    import_torch()
    from steadyrl.audit import run

    return run(recipe, as_json=options.json, strict=options.strict)
