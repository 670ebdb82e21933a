"""The recipes that come with SteadyRL, and reading a recipe by its name or path."""

import difflib
from pathlib import Path

from steadyrl.recipe.base import RecipeError
from steadyrl.recipe.loading import load
from steadyrl.recipe.tree import Recipe

FOLDER = Path(__file__).parents[1] / "recipes"


def names() -> list[str]:
    """The names of the recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(given: str) -> Path:
    """The file of a recipe: `demo` is a name, `demo.toml` and `./demo` are paths.

    Raises:
        RecipeError: no recipe has this name.
    """
    path = Path(given).expanduser()
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    if given not in names():
        near = difflib.get_close_matches(given, names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"no recipe is called {given!r}; {hint}use one of {', '.join(names())}, or a path")
    return FOLDER / f"{given}.toml"


def read(given: str) -> Recipe:
    """The recipe with a name or a path. The data and functions of a shipped recipe are in its folder.

    Raises:
        RecipeError: it is not there, or cannot be used.
    """
    path = find(given)
    recipe = load(path)
    if path.absolute().parent != FOLDER or recipe.task.kind != "questions":
        return recipe
    own = {name: str(FOLDER / value) for name in ("path", "reward") if _is_beside(value := getattr(recipe.task, name))}
    return recipe.model_copy(update={"task": recipe.task.model_copy(update=own)})


def _is_beside(value: str) -> bool:
    """Whether a file of this name, or of a `file.py:function`, is in the folder of the recipes."""
    return (FOLDER / value.partition(":")[0]).is_file()
