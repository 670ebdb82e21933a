"""`steadyrl eval CHECKPOINT`."""

from pathlib import Path

from steadyrl.api import evaluate_recipe
from steadyrl.commands.accuracy import print_evaluation
from steadyrl.commands.flags import first, with_flags
from steadyrl.measure.trouble import unreached
from steadyrl.recipe import Recipe
from steadyrl.saved import TRUST, recipe_of
from steadyrl.terminal import tell


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint: sampled and greedy, in the sampler's precision and unquantised."""
    given, rest = first(argv, "eval CHECKPOINT [flags]", "CHECKPOINT is a run directory or one of its checkpoints")
    recipe = recipe_of(Path(given), trust_remote_code=TRUST in rest)
    rest = [flag for flag in rest if flag != TRUST]
    recipe = with_flags(Recipe, recipe, rest, f"steadyrl eval {given}")
    rows = evaluate_recipe(recipe)
    print_evaluation(rows)
    if warning := unreached(rows, correct_at=recipe.task.correct_at):
        tell(warning)
    return 0
