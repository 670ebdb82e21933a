"""What an answer can say."""

from dataclasses import dataclass
from fractions import Fraction

from steadyrl.tasks.formulas import Node


@dataclass(frozen=True, slots=True)
class Number:
    """An exact rational number."""

    value: Fraction
    """What it is; of `50%` one half."""
    percent: bool
    """Whether it was written as a percentage."""
    unit: str
    """Its unit if that is a common one, else empty."""
    literal: bool
    """Whether it was written as a number, not as a power, a root or a whole fraction."""
    node: Node | None
    """How it was written; None for a plain decimal."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that is no worked-out rational number."""

    node: Node
    """Its tree."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of a choice."""

    letter: str
    """Case folded."""
    more: "ReadAnswer | None"
    """The text after it, as in `B) 12`."""


@dataclass(frozen=True, slots=True)
class Several:
    """A tuple, interval, set, matrix, union, or a list without brackets."""

    items: tuple["ReadAnswer", ...]
    """What is in it."""
    brackets: str
    """Its two brackets, `matrix`, `union`, or empty."""


@dataclass(frozen=True, slots=True)
class Equation:
    """A named value, as in `x = 5`."""

    name: str
    """The left side."""
    answer: "ReadAnswer"
    """The right side."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """LaTeX that only math_verify reads, such as an inequality."""

    latex: str
    """It."""


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """An answer that was read."""

    text: str
    """Its text, case folded, for a comparison as text."""
    value: Number | Formula | Choice | Several | Equation | Opaque | None
    """What it says; None for words."""
