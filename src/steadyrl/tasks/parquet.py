"""Rows of a Parquet file, with pyarrow, which is imported only here."""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from steadyrl.tasks.base import TaskError

_ROWS_AT_ONCE = 1024


def read_parquet(raw: IO[bytes], path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The rows; the first is `row 0`, as pandas counts. A row that cannot be read is given as the reason.

    Raises:
        TaskError: pyarrow is not installed, or the file is no Parquet file or damaged.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise TaskError(f"{path} is Parquet, which needs pyarrow: pip install steadyrl[datasets]") from error
    try:
        file = parquet.ParquetFile(raw)
        names = file.schema_arrow.names
        if twice := {name for name in names if names.count(name) > 1}:
            raise TaskError(f"{path} has two columns {min(twice)!r}")
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE)
        for number, row in enumerate(row for batch in batches for row in rows_of(batch)):
            yield f"row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"cannot read {path}: {error}") from error


def rows_of(table: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of an Arrow batch or table, one by one where they cannot be read together; a map is a mapping."""
    table = _short_floats(table)
    try:
        yield from table.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError):
        for index in range(table.num_rows):
            try:
                yield table.slice(index, 1).to_pylist(maps_as_pydicts="strict")[0]
            except (ValueError, OverflowError) as error:
                yield f"cannot be read: {error}"
            except KeyError:  # of a map
                yield "holds a map that has a key twice"


def _short_floats(table: Any) -> Any:
    """The table with floats of 16 and 32 bits as the doubles of the same shortest digits: 0.1 stays 0.1."""
    import pyarrow
    from pyarrow import types

    def replaced(kind: Any, by: Any) -> Any:
        if types.is_float16(kind) or types.is_float32(kind):
            return by
        if types.is_struct(kind):
            return pyarrow.struct([field.with_type(replaced(field.type, by)) for field in kind])
        if types.is_dictionary(kind):
            value = replaced(kind.value_type, by)
            return kind if value == kind.value_type else value
        if types.is_map(kind):
            return pyarrow.map_(replaced(kind.key_type, by), replaced(kind.item_type, by))
        if types.is_fixed_size_list(kind):
            return pyarrow.list_(kind.value_field.with_type(replaced(kind.value_type, by)), kind.list_size)
        for is_list, made in ((types.is_list, pyarrow.list_), (types.is_large_list, pyarrow.large_list)):
            if is_list(kind):
                return made(kind.value_field.with_type(replaced(kind.value_type, by)))
        return kind

    def schema(by: Any) -> Any:
        return pyarrow.schema([field.with_type(replaced(field.type, by)) for field in table.schema])

    digits = schema(pyarrow.string())
    return table if digits == table.schema else table.cast(digits).cast(schema(pyarrow.float64()))
