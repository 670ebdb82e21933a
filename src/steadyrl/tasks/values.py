"""Values of data files, exactly as they are written: JSON without retyping, and values as text."""

import json
import re
import reprlib
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from typing import Any

DEEPEST = 100
"""How deep brackets may nest."""
LONGEST_NUMBER = 1_000
"""Most characters of a number."""
LONGEST_TEXT = 4_000_000
"""Most characters of a question, an answer or a solution."""

_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_INVISIBLE = "\u200b\u2060\ufeff"


class _Short(reprlib.Repr):
    """Bounded `repr`: long texts and lists are cut in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 3


class Written(float):
    """A float that remembers its digits: 1.50 is not 1.5 to somebody who compares texts."""

    __slots__ = ("digits",)

    def __new__(cls, digits: str) -> "Written":
        """The number, and the digits as written in the file."""
        _require_short(digits)
        number = super().__new__(cls, digits)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"holds the number {digits[:40]}, which is too large for a float")
        number.digits = digits
        return number


def parse_object(text: str) -> dict[str, Any]:
    """Read one JSON object. Integers keep their digits, and so do floats, as `Written`.

    Raises:
        ValueError: the text is malformed, no object, nested too deep, or it holds NaN, an infinity, a very long number
            or the same name twice. The message continues a sentence that begins with the place.
    """
    brackets = text.count("[") + text.count("{")
    if brackets > DEEPEST and any(depth > DEEPEST for depth, _ in _nesting(text)):
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise ValueError(f"is not a JSON object but {type(value).__name__}: {show(value)}")
    return value


def split_array(text: str) -> Iterator[tuple[int, str]]:
    """Cut the text of a JSON array into its elements, each with the line on which it begins, without reading them.

    Raises:
        ValueError: the array or a string in it is never closed, or something follows it.
    """
    start, end = text.index("[") + 1, 0
    line, counted = 1, 0
    for depth, at in _nesting(text):
        if depth == 0 or (depth == 1 and text[at] == ","):
            element = text[start:at]
            first = start + len(element) - len(element.lstrip())
            if element.strip() or text[at] == ",":
                line += text.count("\n", counted, first)
                counted = first
                yield line, element
            start = at + 1
        if depth == 0:
            end = at + 1
            break
    if not end:
        raise ValueError("the list is never closed; is the file cut short?")
    if text[end:].strip():
        raise ValueError("something follows the list")


def _nesting(text: str) -> Iterator[tuple[int, int]]:
    """Depth after each bracket or comma outside strings, and its position."""
    depth = 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == '"':
            return  # a string that is never closed: whatever reads the text says so
        if mark in "[{":
            depth += 1
        elif mark in "]}":
            depth -= 1
        if len(mark) == 1:
            yield depth, token.start()


def text_of(value: Any) -> str:
    """A value as text: integers and floats with the digits that were written, none in exponents of our own.

    Raises:
        ValueError: it is neither text nor a number, or it is empty, not finite, very long or not valid Unicode.
    """
    if isinstance(value, Written):
        return value.digits
    if isinstance(value, Decimal | date | time | bytes):
        value = plain(value)
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"is not a finite number but {value}")
        return format(Decimal(repr(value)), "f")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"must be text or a number, found {show(value)}")
    text = str(value)
    if not text.strip().strip(_INVISIBLE).strip():
        raise ValueError(f"is empty, found {show(value)}")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
    if "\0" in text:
        raise ValueError("holds a NUL character")
    if not encodes(text):
        raise ValueError("holds half of a surrogate pair, which is not a character")
    return text


def plain(value: Any) -> Any:
    """A value as plain JSON: dates and decimals as their text, UTF-8 bytes as text, a map as an object.

    Raises:
        ValueError: it is of another kind, such as bytes that are not text.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return value
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, date | time):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"is {len(value):,} bytes that are not UTF-8 text") from error
    raise ValueError(f"is of the type {type(value).__name__}, which is neither text nor a number")


def encodes(text: str) -> bool:
    """Whether text is valid Unicode: without half surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def show(value: Any) -> str:
    """A value for an error message: short, and with control characters escaped."""
    return _Short().repr(value)


def _integer(digits: str) -> int | Written:
    _require_short(digits)
    return int(digits) if digits != "-0" else Written(digits)


def _constant(name: str) -> Any:
    raise ValueError(f"is not JSON: {name} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"holds the field {show(next(n for n in names if names.count(n) > 1))} twice")
    return row


def _require_short(digits: str) -> None:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"holds a number of {len(digits):,} characters; at most {LONGEST_NUMBER:,} are read")


_DECODER = json.JSONDecoder(
    parse_float=Written, parse_int=_integer, parse_constant=_constant, object_pairs_hook=_object
)
