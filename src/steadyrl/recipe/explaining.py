"""Mistakes in a recipe, in words: the field, what is wrong, what was found, and what is near it."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic.fields import FieldInfo

from steadyrl.options.source import ROOMS
from steadyrl.recipe.base import Section
from steadyrl.recipe.sections import PretrainedModel, TinyModel
from steadyrl.recipe.variants import SECTIONS, Chosen
from steadyrl.renamed import new_field

VARIANTS: dict[tuple[str, str], list[str]] = {
    ("model", "kind"): [model.model_fields["kind"].default for model in (PretrainedModel, TinyModel)],
    **{(section, ROOMS[section].tag): list(choices) for section, choices in SECTIONS.items()},
}
"""The sections that come in kinds: (section, field that says which) → the kinds there are."""
_TAGS = {kind for kinds in VARIANTS.values() for kind in kinds}
"""pydantic names the variant in an error's location; the recipe's writer did not."""


def explain(detail: Mapping[str, Any], root: type[Section]) -> str:
    """One validation error of `root` as `field: what is wrong (found …)`, with a suggestion for a misspelt key."""
    unknown = detail["type"] == "extra_forbidden"  # its last part is what the writer wrote, whatever it is called
    *above, last = detail["loc"] or ("recipe",)
    place = [str(part) for part in above if part not in _TAGS] + [str(last)] * (unknown or last not in _TAGS)
    field = ".".join(place)
    if unknown and (new := new_field(field)):
        return f"{field}: unknown key; it is now called `{new}`"
    if unknown:
        near = difflib.get_close_matches(str(last), _section_at(root, above).model_fields, n=1)
        near = near or _elsewhere(str(last), root)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"{field}: unknown key{hint}"
    if detail["type"].startswith("union_tag"):
        return _unknown_variant(field, detail)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "value_error"):
        return f"{field}: {message}"
    return f"{field}: {message} (found {_short(detail['input'])})"


def _unknown_variant(section: str, detail: Mapping[str, Any]) -> str:
    """What may be chosen in a section that chooses nothing, or what there is not."""
    (tag,) = (tag for name, tag in VARIANTS if name == section)
    kinds = VARIANTS[section, tag]
    known = f"known: {', '.join(kinds)}"
    if not isinstance(detail["input"], Mapping):
        return f"{section}: must be a section with a `{tag}` (found {_short(detail['input'])}); {known}"
    if detail["type"] == "union_tag_not_found":
        return f"{section}.{tag}: Field required; {known}"
    found = str(detail["ctx"]["tag"])
    near = difflib.get_close_matches(found, kinds, n=1)
    return f"{section}.{tag}: {found!r} is unknown; {f'did you mean `{near[0]}`?' if near else known}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:90]}… ({len(text)} characters)"


def _section_at(root: type[Section], place: Sequence[str | int]) -> type[Section]:
    """The section that an error's location names, such as `("task", "questions")`."""
    choices = {"": root}
    for part in place:
        if part in choices:
            choices = {"": choices[str(part)]}
        elif len(choices) == 1 and part in (fields := next(iter(choices.values())).model_fields):
            choices = _sections_of(fields[str(part)]) or choices
    return next(iter(choices.values()))


def _sections_of(field: FieldInfo) -> dict[str, type[Section]]:
    """The sections that a field may hold, by what chooses them."""
    for mark in field.metadata:
        if isinstance(mark, Chosen):
            return dict(SECTIONS[mark.section])
    return {_kind(section): section for section in _classes_in(field.annotation)}


def _kind(section: type[Section]) -> str:
    return section.model_fields["kind"].default if "kind" in section.model_fields else section.__name__


def _classes_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for part in get_args(annotation) for section in _classes_in(part)]


def _elsewhere(key: str, root: type[Section]) -> list[str]:
    """The one other section that has a field of this very name, as `section.field`."""
    found = [
        f"{name}.{key}"
        for name, field in root.model_fields.items()
        if any(key in section.model_fields for section in _sections_of(field).values())
    ]
    return found if len(found) == 1 else []
