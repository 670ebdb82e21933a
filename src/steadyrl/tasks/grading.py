"""What a verifier returned, as a reward and further numbers, or as the reason why there is no reward."""

import contextlib
import math
import numbers
import re
import struct
from collections.abc import Mapping, Sized
from typing import Any

_LONGEST_FAILURE = 500
_LONGEST_VALUE = 200
_MOST_PARTS = 32
_LONGEST_NAME = 64


class NotANumber(ValueError):
    """A value that is no finite number in float32. The message names it."""


def grade(returned: Any) -> tuple[float, dict[str, float]]:
    """The reward and its parts.

    `returned` is a number, or a mapping with the number `score`. The other numbers of a mapping are parts, by name;
    whatever else it holds is left out.

    Raises:
        NotANumber: there is no reward in it.
    """
    if not isinstance(returned, Mapping):
        return number(returned), {}
    if "score" not in returned:
        raise NotANumber(f"returned a mapping without `score`: {shown(returned)}")
    parts: dict[str, float] = {}
    for name, value in returned.items():
        if isinstance(name, str) and name != "score" and len(parts) < _MOST_PARTS:
            with contextlib.suppress(NotANumber):
                parts[_plain_name(name)] = number(value)
    try:
        return number(returned["score"]), parts
    except NotANumber as error:
        raise NotANumber(f"{error} as `score`") from None


def rewards_of(returned: Any, count: int) -> list[Any]:
    """The items of a list of rewards.

    Raises:
        NotANumber: it is no list, or not of `count` items.
    """
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Sized):
        raise NotANumber(f"returned {shown(returned)}, not a list with a reward for each of {count} responses")
    try:
        items: list[Any] = list(returned)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except Exception:  # the user's object may raise anything
        raise NotANumber(f"returned {shown(returned)}, not a list of {count} rewards") from None
    if len(items) != count:
        raise NotANumber(f"returned {len(items)} rewards for {count} responses: {shown(returned)}")
    return items


def number(value: Any) -> float:
    """A value that `float()` takes exactly: numbers of any library, and arrays and tensors that hold one.

    Raises:
        NotANumber: it is text, None, complex or of many numbers, or not finite in float32.
    """
    if value is None or isinstance(value, str | bytes | bytearray | memoryview) or _is_complex(value):
        raise NotANumber(f"returned {shown(value)}, not a number")
    try:
        if complex(value).imag:
            raise NotANumber(f"returned {shown(value)}, not a number")
        found = float(value)
    except OverflowError:
        found = math.inf
    except NotANumber:
        raise
    except Exception:  # conversions of the user's objects may raise anything
        raise NotANumber(f"returned {shown(value)}, not a number") from None
    if math.isnan(found):
        raise NotANumber(f"returned {shown(value)}")
    try:
        struct.pack("<f", found)
        overflows = math.isinf(found)
    except OverflowError:
        overflows = True
    if overflows:
        raise NotANumber(f"returned {shown(value)}, which is not finite in float32")
    return found


def _is_complex(value: Any) -> bool:
    return isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)


def shown(value: Any) -> str:
    """A value as it prints, cut; its own text may raise as well."""
    try:
        text = repr(value)
    except BaseException:  # the user's class may raise anything, and Python prints no integer of 5,000 digits
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def cut(failure: str) -> str:
    """A failure at a length that logs can hold."""
    return failure[:_LONGEST_FAILURE]


def _plain_name(name: str) -> str:
    """A name for the metrics: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:_LONGEST_NAME].strip("_") or "part"
