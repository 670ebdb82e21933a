"""Finds the saved model that a user names, and decides whether its own code may run."""

from pathlib import Path

from steadyrl.recipe import PretrainedModel, Recipe, RecipeError, load

TRUST = "--trust-remote-code"


def trusted(recipe: Recipe, path: Path, allowed: bool) -> bool:
    """Whether the model's own Python code may run. A run directory may come from somebody else: it cannot say so.

    Raises:
        RecipeError: the model needs its code, and the command line does not allow it.
    """
    asked = isinstance(recipe.model, PretrainedModel) and recipe.model.trust_remote_code
    if asked and not allowed:
        raise RecipeError(
            f"the recipe of {path} runs its model's own Python code (model.trust_remote_code). "
            f"If you trust it, add {TRUST}"
        )
    return asked


def verified(path: Path) -> tuple[Path, Recipe]:
    """Find a checkpoint of a run, and hold it against its manifest.

    Returns:
        Its folder, and the recipe of its run.

    Raises:
        RecipeError: there is none of this name.
        CheckpointError: it is damaged.
    """
    from steadyrl.run import checkpoint

    run = path if (path / "recipe.json").is_file() else path.absolute().parent.parent
    if not (run / "recipe.json").is_file():
        raise RecipeError(f"{path} is neither a run directory nor a checkpoint of one (RUN/checkpoints/step-…)")
    known = [folder.name for folder in checkpoint.listed(run / "checkpoints")]
    name = path.name if path != run else known[-1] if known else "checkpoint yet"
    if name not in known:
        raise RecipeError(f"{run} has no {name}; it has {known}")
    folder = run / "checkpoints" / name
    checkpoint.verify(folder)
    return folder, load(run / "recipe.json")


def recipe_of(path: Path, *, trust_remote_code: bool) -> Recipe:
    """The recipe that evaluates a saved model: that of its run, without cold start and trackers.

    Args:
        path: a run directory, whose newest checkpoint is taken, or one of its checkpoints.
        trust_remote_code: whether the model's own Python code may run, where the run's recipe asks for it.

    Raises:
        RecipeError: there is no such checkpoint, or its model needs its own code.
    """
    folder, recipe = verified(path)
    trust = trusted(recipe, path, trust_remote_code)
    pretrained = PretrainedModel(path=str(folder / "model"), trust_remote_code=trust)
    return recipe.model_copy(update={"model": pretrained, "cold_start": None, "trackers": ()})
