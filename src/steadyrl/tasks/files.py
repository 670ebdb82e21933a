"""Rows of data files: JSON Lines, JSON, CSV and TSV, each also gzipped. Parquet is read in `parquet.py`.

Each reader yields rows in the order of the file: the place, such as `line 7`, and the row as a mapping, or the reason
why there is none, as a text. One bad row never hides the next. What harms the whole file raises TaskError.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.values import encodes, parse_object, show, split_array

Row = tuple[str, dict[str, Any] | str]
"""Where a row is, and the row itself, or what is wrong with it."""

LONGEST_ROW = 64_000_000
"""Most characters of one row."""
LONGEST_JSON = 1_000_000_000
"""Most characters of a file that is one JSON list, which is read as a whole."""

_READERS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")
KNOWN = f"known endings: {', '.join(f'.{name}' for name in _READERS)}, each also with .gz"


def kind_of(name: str) -> str | None:
    """What a file's ending says it is, in upper or lower case: one of the known endings, or None."""
    ending = name.lower().removesuffix(".gz").rpartition(".")
    return ending[2] if ending[1] and ending[2] in _READERS else None


def is_packed(name: str) -> bool:
    """Whether a file's ending says that it is gzipped."""
    return name.lower().endswith(".gz")


def read_file(path: Path, kind: str, *, packed: bool) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: The file.
        kind: How it is read, from `kind_of`.
        packed: Whether it is gzipped.

    Raises:
        TaskError: the file cannot be read, or it is damaged as a whole.
    """
    try:
        with path.open("rb") as stored, gzip.open(stored) if packed else stored as raw:
            if kind == "parquet":
                from steadyrl.tasks.parquet import read_parquet

                yield from read_parquet(io.BytesIO(raw.read()) if packed else stored, path)
                return
            text = _as_text(raw, path, newline="" if kind in ("csv", "tsv") else "\n")
            if kind == "json":
                yield from _read_json(text, path)
            elif kind in ("csv", "tsv"):
                yield from _read_table(text, path, delimiter="," if kind == "csv" else "\t")
            else:
                yield from _read_lines(text)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"cannot read {path}: {error}") from error


def _as_text(raw: Any, path: Path, *, newline: str) -> io.TextIOWrapper:
    """The text of a file. A byte that is not UTF-8 becomes half a surrogate pair, by which its row is found."""
    start = raw.peek(2)[:2]
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise TaskError(f"{path} is UTF-16; save it as UTF-8")
    if start == b"\x1f\x8b":
        raise TaskError(f"{path} is gzipped; give it a name that ends in .gz")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _read_lines(text: io.TextIOBase) -> Iterator[Row]:
    """JSON Lines; blank lines are skipped."""
    number = 0
    while line := text.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW:
            while not line.endswith("\n") and line:
                line = text.readline(LONGEST_ROW)
            yield f"line {number}", f"is longer than {LONGEST_ROW:,} characters"
        elif not line.isspace():
            yield f"line {number}", _parsed(line.lstrip("\ufeff"))


def _read_json(text: io.TextIOBase, path: Path) -> Iterator[Row]:
    """A list of objects, or one object a line as in JSON Lines."""
    whole = text.read(LONGEST_JSON + 1)
    if len(whole) > LONGEST_JSON:
        raise TaskError(f"{path} is longer than {LONGEST_JSON:,} characters; save it as .jsonl, one object a line")
    if not whole.lstrip().startswith("["):
        rows = list(_read_lines(io.StringIO(whole, newline="\n")))
        if rows and isinstance(rows[0][1], str) and not isinstance(_parsed(whole), str):
            raise TaskError(f"{path} is one JSON object; it must be a list of objects, or one object a line")
        yield from rows
        return
    try:
        for line, element in split_array(whole):
            yield f"line {line}", _parsed(element)
    except ValueError as error:
        raise TaskError(f"{path} is not JSON: {error}") from error


def _parsed(text: str) -> dict[str, Any] | str:
    """The object that a text holds, or what is wrong with the text."""
    if not encodes(text):
        return _NOT_UTF8
    try:
        return parse_object(text)
    except ValueError as error:
        return str(error)


_NOT_UTF8 = "is not UTF-8"


def _read_table(text: io.TextIOBase, path: Path, *, delimiter: str) -> Iterator[Row]:
    """CSV or TSV with a header: every value is text. A quoted value may run over several lines."""
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    header = _header(lines, path, delimiter)
    while True:
        place = f"line {lines.line_num + 1}"
        try:
            with _long_fields():
                values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise TaskError(f"{path}, {place}: a quote is opened and never closed") from error
            yield place, f"is not {'CSV' if delimiter == ',' else 'TSV'}: {error}"
            continue
        if not all(map(encodes, values)):
            yield place, _NOT_UTF8
        elif len(values) == len(header):
            yield place, dict(zip(header, values, strict=True))
        elif values:
            yield place, f"has {len(values)} values, but the header has {len(header)} columns"


def _header(lines: Any, path: Path, delimiter: str) -> list[str]:
    """The names of the columns.

    Raises:
        TaskError: there are none, or two are alike.
    """
    try:
        header = next((line for line in lines if line), [])
    except csv.Error as error:
        raise TaskError(f"{path}: the header cannot be read: {error}") from error
    if not all(map(encodes, header)):
        raise TaskError(f"{path}: the header {_NOT_UTF8}")
    if len(header) == 1 and delimiter == "," and (other := next((c for c in ";\t|" if c in header[0]), None)):
        raise TaskError(f"{path}: the header {show(header[0])} is separated by {other!r}; a .csv file needs commas")
    if twice := {name for name in header if header.count(name) > 1}:
        raise TaskError(f"{path}: the header names the column {show(min(twice))} twice")
    return header


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let csv read long values, which its own limit, one for the whole process, forbids."""
    before = csv.field_size_limit(LONGEST_ROW)
    try:
        yield
    finally:
        csv.field_size_limit(before)
