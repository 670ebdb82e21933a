"""Where question/answer pairs come from: a file, a folder or a name on the hub."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.files import KNOWN, Row, is_packed, kind_of, read_file
from steadyrl.tasks.parquet import rows_of
from steadyrl.tasks.values import show

_ROWS_AT_ONCE = 1024


def read_source(path: str, *, subset: str | None, split: str) -> tuple[str, Iterator[Row]]:
    """The name of a dataset for messages, and its rows in order.

    Args:
        path: A file, read by its ending; a folder, or a name on the hub, for the `datasets` library. Only what does
            not exist is taken for a name. `~` is the home folder.
        subset: Configuration of a `datasets` dataset, such as `main` of `openai/gsm8k`, or None.
        split: Split of a `datasets` dataset; a file has none.

    Raises:
        TaskError: it does not exist, its ending is not known, or it cannot be read.
    """
    here = _existing(path)
    if here is None:
        _require_hub_name(path, split)
    if here is None or here.is_dir():
        name = f"{path}, split {split}" if subset is None else f"{path} ({subset}), split {split}"
        return name, read_hub(path if here is None else str(here), subset, split)
    if not here.is_file():
        raise TaskError(f"task.path = {_quoted(path)} is neither a file nor a folder")
    kind = kind_of(here.name)
    if kind is None:
        raise TaskError(f"task.path = {_quoted(path)}: the ending of this file is not known; {KNOWN}")
    return path, read_file(here, kind, packed=is_packed(here.name))


def _existing(path: str) -> Path | None:
    """The file or folder, or None if there is none."""
    if not path.strip():
        raise TaskError(f"task.path = {path!r} is empty; give a file, a folder or the name of a dataset")
    try:
        here = Path(path).expanduser()
        return here if here.exists() else None
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, or nobody's home
        reason = error.strerror if isinstance(error, OSError) else error
        raise TaskError(f"task.path = {_quoted(path)} is no path: {reason}") from error


def _quoted(path: str) -> str:
    return repr(path) if len(path) < 300 else show(path)


def _require_hub_name(path: str, split: str) -> None:
    """Refuse what does not exist and looks like a file or a folder, rather than ask the hub for it."""
    missing = f"there is no such file or folder, seen from {Path.cwd()}"
    if kind_of(path) is not None:
        raise TaskError(f"cannot read the questions in {_quoted(path)[1:-1]}: {missing}")
    if path.count("/") > 1 or path.startswith((".", "/", "~")) or ("/" in path and Path(path).parent.is_dir()):
        raise TaskError(f"cannot load split {split!r} of the dataset {_quoted(path)}: {missing}")


def read_hub(path: str, subset: str | None, split: str) -> Iterator[Row]:
    """The rows of a `datasets` dataset: a folder, or a name on the hub.

    If a split consists of files that SteadyRL can read, SteadyRL reads them. `datasets` would infer types of CSV and
    JSON again: `007` would become 7, a text might become a date, and `NA` would be lost. Other splits, such as
    `train[:100]`, have the types that `datasets` gives them. So do datasets that declare how their files are read.

    Raises:
        TaskError: the library is not installed, or the dataset or the split does not exist.
    """
    try:
        from datasets import DownloadManager, load_dataset, load_dataset_builder
        from datasets.exceptions import DatasetGenerationError
    except ModuleNotFoundError as error:
        raise TaskError(
            f"task.path = {_quoted(path)} is no file; for Hugging Face datasets: pip install steadyrl[datasets]"
        ) from error
    try:
        builder = load_dataset_builder(path, subset)
        names = [str(name) for name in (builder.config.data_files or {}).get(split, ())]
        if names and all(map(kind_of, names)) and _is_default(builder.config):
            paths = DownloadManager().download(names)
            return _read_files(names, [Path(one) for one in paths])
        return _read_dataset(load_dataset(path, subset, split=split))
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise TaskError(f"cannot load split {split!r} of the dataset {_quoted(path)}: {error}") from error


def _is_default(options: Any) -> bool:
    """Whether a dataset says nothing of how its files are read, such as their separator or the names of columns."""
    usual, ours = type(options)(), {"name", "version", "data_dir", "data_files", "description", "features"}
    return all(
        getattr(options, field.name) == getattr(usual, field.name)
        for field in dataclasses.fields(options)
        if field.name not in ours
    )


def _read_files(names: list[str], paths: list[Path]) -> Iterator[Row]:
    """The rows of several files; a downloaded one has lost its name."""
    for name, path in zip(names, paths, strict=True):
        for place, row in read_file(path, kind_of(name) or "", packed=is_packed(name)):
            yield (place if len(names) == 1 else f"{Path(name).name}, {place}"), row


def _read_dataset(dataset: Any) -> Iterator[Row]:
    """The rows as they are stored, from `row 0`: pictures and sounds are not decoded."""
    tables = dataset.with_format("arrow").iter(_ROWS_AT_ONCE)
    for number, row in enumerate(row for table in tables for row in rows_of(table)):
        yield f"row {number}", row
