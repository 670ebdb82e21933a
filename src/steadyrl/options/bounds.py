"""Types of options: numbers with both ends, texts, and rules between two options of one class.

    min_terms: Annotated[int, Within(ge=2, le=40), NotAbove("max_terms")] = 3

pydantic reads the marks by their own hook, so that a class which declares options needs no pydantic.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

JsonDict = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Within:
    """A number between two ends. Booleans are no numbers, and NaN and infinity lie between no ends."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> JsonDict:
        """The number's own schema with these ends."""
        ends = {name: end for name in self.__slots__ if (end := getattr(self, name)) is not None}
        number = handler(source)
        finite = {"allow_inf_nan": False} if number["type"] == "float" else {}
        return _function("before", _no_boolean, {**number, **ends, **finite})


@dataclass(frozen=True, slots=True)
class Text:
    """Printable text that is not empty; in a `place`, `~` is the home folder."""

    place: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> JsonDict:
        """The text's own schema, and this check behind it."""
        return _function("after", self.checked, handler(source))

    def checked(self, value: str) -> str:
        """The text; a place is written out, so that a run remembers all of it.

        Raises:
            ValueError: it is empty, or has characters that cannot be seen.
        """
        if not value.strip() or not value.isprintable():
            raise ValueError(f"must be printable text that is not empty (found {value!r})")
        return os.path.expanduser(value) if self.place else value


@dataclass(frozen=True, slots=True)
class InfIsNone:
    """`inf` is None: TOML has no null."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> JsonDict:
        """The schema behind the translation."""
        return _function("before", lambda value: None if value == math.inf else value, handler(source))


def _function(when: str, function: Any, schema: JsonDict) -> JsonDict:
    """pydantic's schema of a function before or after another schema."""
    return {"type": f"function-{when}", "function": {"type": "no-info", "function": function}, "schema": schema}


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number (found {str(value).lower()})")
    return value


class Rule(Protocol):
    """What an option must keep beside its own type."""

    def fault(self, name: str, values: Mapping[str, Any]) -> str | None:
        """What is wrong with the option `name` among the values of its class; None: nothing."""
        ...


@dataclass(frozen=True, slots=True)
class NotAbove:
    """The option is at most another one; below it, if `strict`."""

    other: str
    strict: bool = False

    def fault(self, name: str, values: Mapping[str, Any]) -> str | None:
        """None where the other option is None: it is no bound then."""
        value, most = values[name], values[self.other]
        if most is None or value < most or (value == most and not self.strict):
            return None
        return f"{name} = {value} is {'not below' if self.strict else 'above'} {self.other} = {most}"


@dataclass(frozen=True, slots=True)
class OnlyWith:
    """The option has a meaning with one value of another option only."""

    other: str
    value: str

    def fault(self, name: str, values: Mapping[str, Any]) -> str | None:
        """None where the option is 0 or off."""
        if not values[name] or values[self.other] == self.value:
            return None
        return f'{name} = {values[name]} only applies when {self.other} = "{self.value}"'


@dataclass(frozen=True, slots=True)
class Fixed:
    """Stages of the cold start may not change the option."""

    reason: str
    """What would happen."""


Fraction = Annotated[float, Within(ge=0.0, le=1.0)]
Decay = Annotated[float, Within(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Within(gt=0.0, le=1e30)]
Weight = Annotated[float, Within(ge=0.0, le=1e9)]
PositiveInt = Annotated[int, Within(ge=1, le=10**9)]
Count = Annotated[int, Within(ge=0, le=10**9)]
Temperature = Annotated[float, Within(ge=1e-3, le=1e3)]
AtOnce = Annotated[int, Within(ge=1, le=2**16)]
"""How many things exist side by side: processes, sequences, responses to one prompt."""
FedTokens = Annotated[int, Within(ge=1, le=2**26)]
"""Tokens of one forward."""
Bound = Annotated[PositiveFloat | None, InfIsNone()]
"""A bound from above; `inf`, which is null in JSON, is none."""
Name = Annotated[str, Text()]
"""A name."""
PathOrName = Annotated[str, Text(place=True)]
"""A path, or a name; `~` is the home folder, and a run remembers the whole path."""
