"""JSON Lines files of a run: one object per line, each with its `step`, in the order of the steps.

They are read as a stream: a ledger of 20,000 steps has hundreds of megabytes.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steadyrl.errors import UserError
from steadyrl.measure.glossary import LOGS
from steadyrl.renamed import METRICS as RENAMED

Value = float | int | str | bool | None
Row = dict[str, Any]
_BLOCK = 1 << 16


class DamagedLog(UserError):
    """A line of a run's files that cannot be read. The message names the file and the line."""


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON Lines file; a last line that a kill cut in mid-write is left out.

    Raises:
        DamagedLog: another line is not a JSON object with a `step`; the message names the file and the line.
    """
    return list(stream_jsonl(path))


def stream_jsonl(path: Path) -> Iterator[Row]:
    """The same rows, one by one; a file that is not there has none."""
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if (row := _held(line, f"{path}, line {number}")) is not None:
                    yield row


def last_step_rows(path: Path) -> list[Row]:
    """The rows of the last step in the file, read from its end; none of a file that is not there."""
    found: list[Row] = []
    for line in _lines_from_the_end(path) if path.exists() else ():
        row = _held(line, f"{path}, a line near its end")
        if row is not None and found and row["step"] != found[-1]["step"]:
            break
        found += [row] if row is not None else []
    return found[::-1]


def _held(line: bytes, where: str) -> Row | None:
    """The row in a line; None of a blank one, and of one without its end that a kill cut in mid-write."""
    if not line.strip():
        return None
    try:
        return _row(line, where)
    except DamagedLog:
        if line.endswith(b"\n"):
            raise
        return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            rest, *whole = (file.read(end - start) + rest).splitlines(keepends=True)
            yield from reversed(whole)
            end = start
        yield rest


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamagedLog(f"{where} is not JSON: {error}; fix or delete this line") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise DamagedLog(f"{where} is not an object with an integer `step`; fix or delete this line")
    return row


def to_line(row: Mapping[str, Value]) -> str:
    """A row as its line; NaN and infinities, which JSON does not have, are null.

    Raises:
        TypeError: a value is not a plain number, string, bool or None.
    """
    for name, value in row.items():
        if not isinstance(value, Value):
            raise TypeError(f"{name} is a {type(value).__name__}; log a plain number (a tensor's .item())")
    plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(plain, allow_nan=False) + "\n"


def keep_rows(path: Path, wanted: Callable[[Row], bool]) -> None:
    """Drop every other row of a file, and what a kill left half written, atomically."""
    write_atomically(path, (to_line(row) for row in stream_jsonl(path) if wanted(row)))


def ends_clean(path: Path) -> bool:
    """Whether the last line of a file is whole; an empty file has none."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text`, or by its pieces.

    A reader, or a kill, meets the old file or the new one, never a part.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, DamagedLog):
        part.unlink(missing_ok=True)
        raise


class MetricsLog:
    """One JSON Lines file of a run, such as `metrics.jsonl`; unless told otherwise, `log` returns once the disk has it.

    JSON has no NaN and no infinity: such values are written as null. A last line that a kill left half
    written is dropped when the file is opened, so that the next line starts clean.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, or create it; its name says which fields it may have (`glossary.LOGS`)."""
        self._path = path
        self._known = re.compile("|".join(_pattern(field.name) for field in LOGS[path.name][1]))
        self._met: set[str] = set()
        path.touch()
        if not ends_clean(path):
            keep_rows(path, lambda row: True)

    def log(self, step: int, *rows: Mapping[str, Value], sync: bool = True) -> None:
        """Append a line for each row: `step`, then its numbers; without `sync`, the disk has them after `sync()`.

        Raises:
            ValueError: a name is not among the file's fields.
            TypeError: a value is not a plain number, string, bool or None.
        """
        new = {name for row in rows for name in row} - self._met
        if unknown := sorted(name for name in new if not self._known.fullmatch(name)):
            named = (f"{name} (now {RENAMED[name]})" if name in RENAMED else name for name in unknown)
            raise ValueError(f"{self._path.name}: unknown {', '.join(named)}; document it in measure/glossary.py first")
        self._met |= new
        lines = "".join(to_line({"step": step, **row}) for row in rows)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)
        if sync:
            self.sync()

    def sync(self) -> None:
        """Wait until the disk has every line."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())

    def truncate(self, step: int) -> None:
        """Drop every line beyond `step`, atomically; a resumed run then writes those steps again."""
        keep_rows(self._path, lambda row: row["step"] <= step)


def _pattern(name: str) -> str:
    """A documented name as a regular expression: `<n>` stands for digits, `<name>` for a name that a user chose."""
    return re.escape(name).replace("<n>", r"\d+").replace("<name>", ".+")
