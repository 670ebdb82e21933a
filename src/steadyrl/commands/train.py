"""`steadyrl train RECIPE`."""

from pathlib import Path

from steadyrl import api
from steadyrl.commands.flags import first, of_recipe, with_flags
from steadyrl.commands.training import carry_out, refuse_several_processes
from steadyrl.preflight import open_task
from steadyrl.recipe import Recipe, shipped
from steadyrl.start import import_torch


class TrainFlags(Recipe):
    """What `train` can be told beside the recipe."""

    run: Path | None = None
    """Run directory; by default runs/<name of the recipe>."""
    dry_run: bool = False
    """Print what would run and how much memory it needs, and stop."""


def main(argv: list[str]) -> int:
    """Train by a recipe, or say what would be trained."""
    refuse_several_processes()
    given, rest = first(
        argv, "train RECIPE [flags]", f"RECIPE is a TOML file, or one of ours: {', '.join(shipped.names())}"
    )
    flags = with_flags(TrainFlags, shipped.read(given), rest, f"steadyrl train {given}")
    recipe, target = of_recipe(flags), flags.run or Path("runs") / Path(given).stem
    if not flags.dry_run:
        return carry_out(
            target, begin=lambda stop, start: api.train(recipe, run=target, stop_asked=stop, on_start=start)
        )
    task = open_task(recipe)
    import_torch()
    from steadyrl.plan import describe

    print(describe(recipe, task, run=target))
    return 0
