"""What a recipe is told on the command line."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

from steadyrl.recipe import VARIANTS, Recipe, RecipeError
from steadyrl.renamed import new_field

T = TypeVar("T", bound=Recipe)


def first(argv: list[str], usage: str, meaning: str) -> tuple[str, list[str]]:
    """The positional argument that must come first, and the rest."""
    if not argv or argv[0].startswith("-"):
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(f"usage: steadyrl {usage}\n{meaning}", file=sys.stdout if asked else sys.stderr)
        raise SystemExit(0 if asked else 2)
    return argv[0], argv[1:]


def with_flags(kind: type[T], recipe: Recipe, rest: list[str], program: str) -> T:
    """The recipe with single values changed by flags."""
    _refuse_old_names(rest)
    _refuse_variants(rest)
    default = kind(**{name: getattr(recipe, name) for name in Recipe.model_fields})
    return tyro.cli(kind, prog=program, args=rest, default=default, config=(tyro.conf.AvoidSubcommands,))


def _refuse_old_names(rest: Sequence[str]) -> None:
    """Reject a flag that an earlier version had.

    Raises:
        RecipeError: it is one; the message has its name of today.
    """
    for flag in rest:
        name = flag.partition("=")[0].removeprefix("--")
        if flag.startswith("--") and (new := new_field(name.replace("-", "_"))):
            raise RecipeError(f"--{name}: unknown flag; it is now called --{new}")


def _refuse_variants(rest: Sequence[str]) -> None:
    """A flag changes a value; what a section is, its kind or name, is for the recipe to say.

    Raises:
        RecipeError: a flag names the kind or name of a section; the message has those that there are.
    """
    for flag in rest:
        section, _, field = flag.lstrip("-").partition("=")[0].partition(".")
        if flag.startswith("--") and (section, field) in VARIANTS:
            raise RecipeError(
                f"{flag.partition('=')[0]} cannot be set by a flag; set it in the recipe with its fields, as "
                f"[{section}] {field} = …; known: {', '.join(VARIANTS[section, field])}"
            )


def of_recipe(flags: Recipe) -> Recipe:
    """The recipe alone, without what a command adds to it."""
    return Recipe(**{name: getattr(flags, name) for name in Recipe.model_fields})
