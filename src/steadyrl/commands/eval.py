"""`steadyrl eval CHECKPOINT`."""

from pathlib import Path

from steadyrl.commands.accuracy import print_evaluation
from steadyrl.commands.checkpoints import TRUST, trusted, verified
from steadyrl.commands.flags import first, with_flags
from steadyrl.commands.start import import_torch, loaded
from steadyrl.measure.trouble import unreached
from steadyrl.recipe import PretrainedModel, Recipe
from steadyrl.run.progress import Display
from steadyrl.terminal import tell


def main(argv: list[str]) -> int:
    """Evaluate a checkpoint: sampled and greedy, in the sampler's precision and unquantised."""
    given, rest = first(argv, "eval CHECKPOINT [flags]", "CHECKPOINT is a run directory or one of its checkpoints")
    folder, recipe = verified(Path(given))
    trust = trusted(recipe, Path(given), TRUST in rest)
    rest = [flag for flag in rest if flag != TRUST]
    pretrained = PretrainedModel(path=str(folder / "model"), trust_remote_code=trust)
    recipe = recipe.model_copy(update={"model": pretrained, "cold_start": None, "trackers": ()})
    recipe = with_flags(Recipe, recipe, rest, f"steadyrl eval {given}")
    import_torch()
    from steadyrl.prepare import prepare

    with prepare(recipe) as ready, loaded(ready) as parts:
        found = parts.evaluator.evaluate(every_mode=True, bar=Display().bar)
    parts.evaluator.require(found)
    print_evaluation(found.rows)
    if warning := unreached(found.rows, correct_at=recipe.task.correct_at):
        tell(warning)
    return 0
