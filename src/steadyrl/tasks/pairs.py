"""Reading question/answer pairs. An error names the file, the line and the field."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steadyrl.tasks.base import Example, TaskError


def read_jsonl(path: Path, fields: Mapping[str, str]) -> list[Example]:
    """Read pairs from a file with one JSON object per line; blank lines are skipped.

    Args:
        path: The file.
        fields: The name in the file of each of `question`, `answer` and `solution`.

    Raises:
        TaskError: the file cannot be read or has no pairs, or a line is malformed or lacks a field.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the questions in {path}: {error}") from error
    rows = ((f"{path}, line {n}", _parse(line, path, n)) for n, line in enumerate(lines, 1) if line.strip())
    return _to_pairs(rows, fields, source=str(path))


def read_hub(path: str, subset: str | None, split: str, fields: Mapping[str, str]) -> list[Example]:
    """Read pairs from a Hugging Face dataset: a folder, or a name on the hub.

    Args:
        path: The folder or name.
        subset: Its configuration, such as `main` of `openai/gsm8k`, or None.
        split: The dataset's split.
        fields: The column that holds each of `question`, `answer` and `solution`.

    Raises:
        TaskError: the library is not installed, or the dataset, the split or a column does not exist.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as error:
        raise TaskError(
            f"path = {path!r} is not a .jsonl file; for Hugging Face datasets: pip install steadyrl[datasets]"
        ) from error
    try:
        dataset = load_dataset(path, subset, split=split)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise TaskError(f"cannot load split {split!r} of the dataset {path!r}: {error}") from error
    rows = ((f"{path}, split {split}, row {n}", row) for n, row in enumerate(dataset))
    return _to_pairs(rows, fields, source=f"split {split} of {path}")


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {number} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise TaskError(f"{path}, line {number} is not a JSON object but {type(row).__name__}: {line[:80]}")
    return row


def _to_pairs(rows: Iterable[tuple[str, Any]], fields: Mapping[str, str], source: str) -> list[Example]:
    """Rows as examples; every row must hold every field."""
    pairs = [
        Example(place=place, **{key: _text(row, name, place) for key, name in fields.items()}) for place, row in rows
    ]
    if not pairs:
        raise TaskError(f"{source} holds no question/answer pairs")
    return pairs


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    """A field as text; numbers are taken as they print."""
    if name not in row:
        raise TaskError(f"{place} has no field `{name}`; it has {', '.join(f'`{key}`' for key in row) or 'none'}")
    value = row[name]
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not text.strip():
        raise TaskError(f"{place}: `{name}` must be text or a number, found {value!r}")
    return text
