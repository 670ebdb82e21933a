"""The checkpoint that a command names, and whether its model may run code of its own."""

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
    """A checkpoint's folder, verified, and the recipe of its run."""
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
