"""From a section that chooses a class to what the class makes; here the user's own code is loaded."""

import importlib
import inspect
from typing import Any, get_type_hints

from pydantic import Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError

from steadyrl.options.bounds import JsonDict
from steadyrl.options.own import OwnCode, find_own, load_own
from steadyrl.options.source import ROOMS, declared
from steadyrl.recipe.base import RecipeError, Section
from steadyrl.recipe.loading import mistakes
from steadyrl.recipe.variants import Own, Variant

CONTRACTS = {
    "objective": ("steadyrl.algo", "Objective"),
    "advantage": ("steadyrl.algo", "Advantage"),
    "task": ("steadyrl.tasks.base", "Task"),
    "engine": ("steadyrl.engine.base", "Engine"),
}
"""What the classes of each section fulfil: module and name, as most of the modules import torch."""


def own_code(section: Variant) -> OwnCode | None:
    """Where the user's own code is that a section names; None: it names a class of ours.

    Raises:
        OwnCodeError: there is no such file or module.
    """
    if not isinstance(section, Own):
        return None
    return find_own(section.chosen, field=f"{section.section}.{ROOMS[section.section].tag}")


def arguments(section: Variant) -> JsonDict:
    """What the recipe tells the class of a section, checked against what the class may be told.

    Raises:
        OwnCodeError: the user's own code cannot be loaded.
        RecipeError: it has other options, or does not do what such a class must.
    """
    place = own_code(section)
    return section.arguments() if place is None else _checked(section, place, load_own(place))


def build(section: Variant, *parts: Any, **given: Any) -> Any:
    """Make what a section chooses.

    Args:
        section: of the recipe.
        parts: what the run gives the class first.
        given: what the run gives it by name, if it takes that.

    Returns:
        An instance of the class; or the user's own function, where a function is enough.

    Raises:
        OwnCodeError, RecipeError: as `arguments`.
    """
    told, place = arguments(section), own_code(section)
    if place is None:
        return declared(section.section)[section.chosen].load()(*parts, **given, **told)
    found = load_own(place)
    if not isinstance(found, type):
        return found
    taken = inspect.signature(found).parameters
    return found(*parts, **{name: value for name, value in given.items() if name in taken}, **told)


def _checked(section: Variant, place: OwnCode, found: Any) -> JsonDict:
    """The options that the recipe gives a class of the user's own."""
    _refuse_other_classes(section, place, found)
    fields = _fields(section, place, found) if isinstance(found, type) else {}
    # what every section of this kind has goes to the class if it has a field of that name
    common = {name: getattr(section, name) for name in type(section).model_fields if name in fields}
    assert isinstance(section, Own)
    try:
        options = create_model(place.name, __base__=Section, **fields)
    except PydanticSchemaGenerationError as error:
        raise RecipeError(f"{place.label}: a recipe cannot hold one of its options: {error.message}") from error
    try:
        told = options.model_validate(common | section.options)
    except ValidationError as error:
        raise RecipeError(mistakes(error, options, source=place.label, above=f"{section.section}.")) from error
    return {name: getattr(told, name) for name in told.model_fields_set}


def _refuse_other_classes(section: Variant, place: OwnCode, found: Any) -> None:
    if section.section == "advantage" and not isinstance(found, type):
        return  # a function
    if not isinstance(found, type):
        raise RecipeError(f"{place.label}: {place.name} is no class; write one as CONTRIBUTING.md describes")
    module, name = CONTRACTS[section.section]
    contract = getattr(importlib.import_module(module), name)
    if section.section == "objective" and not issubclass(found, contract):
        raise RecipeError(f"{place.label}: {place.name} must be a subclass of {module}.{name}")
    needed = [name for name, value in vars(contract).items() if callable(value) and _is_promised(name)]
    lacking = [name for name in needed if not callable(getattr(found, name, None))]
    lacking += ["weigh"] if section.section == "objective" and found.weigh is contract.weigh else []
    if lacking:
        raise RecipeError(f"{place.label}: {place.name} lacks {', '.join(lacking)}; see {contract.__module__}")


def _is_promised(name: str) -> bool:
    return name == "__call__" or not name.startswith("_")


def _fields(section: Variant, place: OwnCode, found: type) -> dict[str, Any]:
    """The options of a class as pydantic's fields: its keyword parameters, less those that come from the run."""
    try:
        types = get_type_hints(found.__init__, include_extras=True)
    except NameError as error:
        raise RecipeError(f"{place.label}: the type of an option cannot be read: {error}") from error
    positional = 1 if section.section == "engine" else 0  # the model
    parameters = list(inspect.signature(found).parameters.values())[positional:]
    return {
        one.name: (types.get(one.name, Any), Field() if one.default is one.empty else Field(default=one.default))
        for one in parameters
        if one.name not in ROOMS[section.section].given and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
    }
