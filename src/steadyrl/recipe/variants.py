"""The sections that choose a class of ours, or of the user's own: objective, advantage, task and engine.

A class of ours says in its own file what it may be told, and its section is made from that. Code of the user's own is
named as `file.py:Class` or `module:Class`; what it may be told is found out when it is loaded, which is later.
"""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, create_model, model_validator

from steadyrl.options.bounds import AtOnce, JsonDict, Within
from steadyrl.options.own import is_own
from steadyrl.options.source import ROOMS, Declared, Option, declared
from steadyrl.recipe.base import Section

OWN = "file.py:Class"
"""How messages write code of the user's own."""


class Variant(Section):
    """A section that chooses a class."""

    section: ClassVar[str]
    """Its name in the recipe."""

    @property
    def chosen(self) -> str:
        """The name of the class of ours; or what the recipe says of the user's own."""
        return getattr(self, ROOMS[self.section].tag)

    def arguments(self) -> JsonDict:
        """What the class is told."""
        options = declared(self.section)[self.chosen].options
        return {name: getattr(self, name) for name, option in options.items() if option.settable}

    def described(self) -> str:
        """What is chosen, and the options that are not its default, for people."""
        fields = type(self).model_fields
        told = {name: value for name, value in self.arguments().items() if value != fields[name].get_default()}
        return _as_line(self.chosen, told)


class ObjectiveSection(Variant):
    """What is maximised."""

    section = "objective"
    name: str
    """Its name, or your own class as `file.py:Class`."""


class AdvantageSection(Variant):
    """How rewards become advantages, and which responses count."""

    section = "advantage"
    name: str
    """Its name, or your own class or function as `file.py:name`."""
    filter_groups: bool = False
    """Groups of equal rewards, which have no gradient, do not count in the denominators either (DAPO's dynamic
    sampling, arXiv 2503.14476, without its sampling anew)."""
    filter_overlong: bool = False
    """Responses cut at the length limit get Â = 0; they count in their group's baseline and in the denominators (DAPO's
    overlong filtering)."""


class TaskSection(Variant):
    """Where prompts and rewards come from."""

    section = "task"
    kind: str
    """Its name, or your own class as `file.py:Class`."""
    correct_at: Annotated[float, Within(ge=-1e9, le=1e9)] = 1.0
    """A response with at least this reward is right: accuracy counts these."""


class EngineSection(Variant):
    """What samples."""

    section = "engine"
    kind: str
    """Its name, or your own class as `file.py:Class`."""
    precision: str = "native"
    """Precision of the weights that sample."""
    kv_precision: str = "native"
    """Precision of the cache of keys and values."""
    max_sequences: AtOnce = 256
    """Most sequences decoded side by side."""


class Own(Variant):
    """A section that names code of the user's own."""

    options: JsonDict = Field(default_factory=dict)
    """What else the section says; the class itself says what it may be told."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        known = {name: value for name, value in tree.items() if name in cls.model_fields and name != "options"}
        rest = {name: value for name, value in tree.items() if name not in cls.model_fields}
        return {**known, "options": {**tree.get("options", {}), **rest}}

    def arguments(self) -> JsonDict:
        """What the class is told, as the recipe says it; `building.arguments` checks it."""
        return self.options

    def described(self) -> str:
        """The class, and what it is told."""
        return _as_line(self.chosen.rpartition(":")[2], self.options)


def written(value: Any) -> str:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "inf", True: "true", False: "false"}[value]
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _as_line(chosen: str, told: Mapping[str, Any]) -> str:
    return ", ".join([chosen, *(f"{name} = {written(value)}" for name, value in told.items())])


def _section(base: type[Variant], chosen: str, one: Declared) -> type[Variant]:
    """The section of a class of ours."""
    fields = {name: (option.type, _field(option)) for name, option in one.options.items() if option.settable}
    tag = (Literal[chosen], chosen)  # pyright: ignore[reportInvalidTypeForm]
    return _model(chosen, (base,), one.meaning, {ROOMS[base.section].tag: tag, **fields})


def _model(name: str, bases: tuple[type[Variant], ...], meaning: str, fields: dict[str, Any]) -> type[Variant]:
    # pydantic would look for the source of a class that has none
    no_source = {"use_attribute_docstrings": False}
    return create_model(name, __base__=bases, __cls_kwargs__=no_source, __doc__=meaning.partition("\n\n")[0], **fields)


def _field(option: Option) -> Any:
    if option.default is MISSING:
        return Field(description=option.meaning)
    default = dict(option.default) if isinstance(option.default, Mapping) else option.default
    return Field(default=default, description=option.meaning)


def _sections(base: type[Variant]) -> dict[str, Any]:
    ours = {chosen: _section(base, chosen, one) for chosen, one in declared(base.section).items()}
    return ours | {OWN: _model(OWN, (Own, base), "Code of your own.", {})}


SECTIONS = {base.section: _sections(base) for base in (ObjectiveSection, AdvantageSection, TaskSection, EngineSection)}
"""The sections that can be chosen: name in the recipe → what is chosen → its section."""


class Chosen:
    """For pydantic: the section that the recipe's writer chose, by its tag alone or with options."""

    def __init__(self, section: str) -> None:
        self.section, self._room = section, ROOMS[section]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> JsonDict:
        """The sections by what chooses them."""
        choices = {chosen: handler.generate_schema(one) for chosen, one in SECTIONS[self.section].items()}
        union = {"type": "tagged-union", "choices": choices, "discriminator": self._tag}
        return {
            "type": "function-before",
            "function": {"type": "no-info", "function": self._as_table},
            "schema": union,
        }

    def _as_table(self, value: Any) -> Any:
        """`"grpo"` is `{"name": "grpo"}`; a table that does not choose takes the default."""
        if isinstance(value, str):
            return {self._room.tag: value}
        if isinstance(value, Mapping) and self._room.default is not None:
            return {self._room.tag: self._room.default, **value}
        return value

    def _tag(self, value: Any) -> Any:
        found = value.get(self._room.tag) if isinstance(value, Mapping) else getattr(value, self._room.tag, None)
        return OWN if isinstance(found, str) and is_own(found) else found
