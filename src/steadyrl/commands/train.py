"""`steadyrl train RECIPE`."""

from pathlib import Path

from steadyrl import recipes
from steadyrl.commands.flags import first, of_recipe, with_flags
from steadyrl.commands.start import import_torch
from steadyrl.commands.training import carry_out, refuse_several_processes
from steadyrl.preflight import open_task, refuse_existing_run
from steadyrl.recipe import Recipe
from steadyrl.run.trackers import require_installed


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
        argv, "train RECIPE [flags]", f"RECIPE is a TOML file, or one of ours: {', '.join(recipes.names())}"
    )
    flags = with_flags(TrainFlags, recipes.read(given), rest, f"steadyrl train {given}")
    recipe, target = of_recipe(flags), flags.run or Path("runs") / Path(given).stem
    if not flags.dry_run:
        refuse_existing_run(target)
        require_installed(recipe.trackers)
    task = open_task(recipe)
    import_torch()
    if flags.dry_run:
        from steadyrl.plan import describe

        print(describe(recipe, task, run=target))
        return 0
    from steadyrl.run.directory import Run
    from steadyrl.run.inputs import inputs_of

    return carry_out(
        recipe,
        target,
        task=task,
        open_run=lambda ready: Run.create(target, ready.recipe, inputs=inputs_of(ready.recipe, ready.task)),
    )
