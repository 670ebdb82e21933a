"""Reading a recipe: a TOML file as people write it, or the resolved JSON of a run directory."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steadyrl.options.own import is_own
from steadyrl.options.source import ROOMS
from steadyrl.recipe.base import RecipeError, Section
from steadyrl.recipe.explaining import explain
from steadyrl.recipe.tree import Recipe
from steadyrl.renamed import translate_recipe

SEEN = "seen"
"""The section that a run adds to its own recipe: digests of what it reads. It is no part of the recipe."""


def load(path: Path) -> Recipe:
    """Read a recipe: TOML as written by people, or the resolved JSON that a run directory keeps.

    Raises:
        RecipeError: the file is missing or malformed, or a field is unknown, mistyped or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    try:
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not valid {path.suffix[1:].upper() or 'TOML'}: {error}") from error
    if path.suffix == ".json" and isinstance(tree, dict):
        tree.pop(SEEN, None)
        translate_recipe(tree)
    folder = path.absolute().parent
    if isinstance(tree, dict):
        _write_paths_out(tree, folder)
    recipe = resolve(tree, source=str(path))
    if path.suffix == ".json" or recipe.verifier.folder is not None or not _runs_own_verifier(recipe):
        return recipe  # a run directory's recipe keeps the folder of the recipe that the run began with
    verifier = recipe.verifier.model_copy(update={"folder": str(folder)})
    return recipe.model_copy(update={"verifier": verifier})


def _write_paths_out(tree: dict[str, Any], folder: Path) -> None:
    """The files of classes of the user's own are seen from the folder of the recipe."""
    for section, room in ROOMS.items():
        held, key = (tree[section], room.tag) if isinstance(tree.get(section), dict) else (tree, section)
        path, _, name = held[key].rpartition(":") if isinstance(held.get(key), str) else ("", "", "")
        if path.endswith(".py"):
            held[key] = f"{os.path.normpath(folder / Path(path).expanduser())}:{name}"


def _runs_own_verifier(recipe: Recipe) -> bool:
    return any(is_own(str(value)) for value in (recipe.task.kind, recipe.task.arguments().get("reward", "")))


def resolve(tree: Mapping[str, Any], *, source: str) -> Recipe:
    """Validate a tree of plain values.

    Raises:
        RecipeError: one line per mistake, each with the field, what was found, and what is near it.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(mistakes(error, Recipe, source=source)) from error


def mistakes(error: ValidationError, root: type[Section], *, source: str, above: str = "") -> str:
    """All mistakes, a line each.

    Args:
        error: what pydantic found.
        root: the section that was validated.
        source: what was validated, for people.
        above: what is put in front of each field.
    """
    lines = [f"  {above}{explain(detail, root)}" for detail in error.errors()]
    return "\n".join([f"{source}: {len(lines)} mistake(s) in the recipe", *lines])
