"""What can be refused before torch and transformers are imported, which takes seconds."""

from pathlib import Path
from typing import Any

from steadyrl.errors import UserError
from steadyrl.recipe import Recipe, RecipeError
from steadyrl.recipe.building import arguments
from steadyrl.tasks.base import Split, Task
from steadyrl.tasks.build import build_task


class RunDirectoryError(UserError):
    """A run directory that cannot be made or gone on with. The message names it and the way out."""


def refuse_existing_run(path: Path) -> None:
    """Leave what is there alone.

    Raises:
        RunDirectoryError: `path` exists.
    """
    try:
        begun, taken = (path / "recipe.json").is_file(), path.exists() or path.is_symlink()
    except OSError as error:
        raise RunDirectoryError(f"cannot make the run directory {path}: {error.strerror}") from error
    if begun:
        raise RunDirectoryError(
            f"{path} exists already. Continue it with `steadyrl resume {path}`, or pass a different --run"
        )
    if taken:
        raise RunDirectoryError(f"{path} exists and is not a run directory; delete it, or pass a different --run")


def require_run(path: Path) -> None:
    """Find a run that can be continued.

    Raises:
        RunDirectoryError: `path` is not a run directory.
    """
    if not (path / "recipe.json").is_file():
        raise RunDirectoryError(f"{path} is not a run directory: it has no recipe.json")


def open_task(recipe: Recipe) -> Task:
    """The task of a recipe: its data are read and checked, once the user's own classes have been.

    Raises:
        OwnCodeError: the user's own code cannot be loaded.
        TaskError: the data or the parameters cannot be used.
        RecipeError: a class of the user's own has other options, the task has too few problems, or a response does not
            fit into a micro-batch.
    """
    for section in (recipe.objective, recipe.advantage, recipe.engine):
        arguments(section)
    task = build_task(recipe.task.kind, seed=recipe.seed, parameters=task_fields(recipe))
    refuse_sizes(recipe, task)
    return task


def task_fields(recipe: Recipe) -> dict[str, Any]:
    """The task's section as plain values, with the further sets that are evaluated.

    Raises:
        OwnCodeError, RecipeError: the user's own task cannot be loaded, or has other options.
    """
    own = {"kind": recipe.task.kind} | arguments(recipe.task)
    columns = ("question_column", "answer_column")
    sets = [
        {name: own[name] if value is None and name in columns else value for name, value in other.model_dump().items()}
        for other in recipe.evaluate.sets
    ]
    return own | {"sets": sets} if sets else own


def refuse_sizes(recipe: Recipe, task: Task) -> None:
    """Hold the sizes that a recipe asks for against its task and against each other.

    Raises:
        RecipeError: the task has too few problems, or a response does not fit into a micro-batch.
    """
    sizes: tuple[tuple[Split, str, int], ...] = (
        ("held_out", "evaluate.prompts", recipe.evaluate.prompts),
        ("train", "rollout.prompts", recipe.rollout.prompts),
        *((other.name, f"evaluate.sets, {other.name}: prompts", other.prompts or 1) for other in recipe.evaluate.sets),
    )
    for split, field, needed in sizes:
        size = task.size(split)
        if size is not None and size < needed:
            way = "; raise task.held_out" if split == "held_out" and needed < (task.size("train") or 0) else ""
            raise RecipeError(
                f"{field} = {needed}, but the task has {size} {split.replace('_', '-')} problem(s). "
                f"Use at most {size}{way}"
            )
    if recipe.update.micro_tokens <= recipe.rollout.max_new_tokens:
        raise RecipeError(
            f"update.micro_tokens = {recipe.update.micro_tokens} is too small for a prompt and a response of "
            f"rollout.max_new_tokens = {recipe.rollout.max_new_tokens}: they must fit into one forward. Raise it"
        )
