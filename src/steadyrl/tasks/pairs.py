"""From rows to question/answer pairs. What is wrong is kept by row, so that one error tells it all."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from steadyrl.tasks.base import Example, TaskError
from steadyrl.tasks.conversations import last_question, read_messages
from steadyrl.tasks.files import Row
from steadyrl.tasks.values import plain, show, text_of

_LISTED = 10
_NAMES_SHOWN = 20
_NO_FIELD = "has no field"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Which columns of a row hold what; `a.b` is the field `b` of the column `a`."""

    question: str
    """The question, or the messages of a conversation."""
    answer: str
    """The reference answer, or a list of accepted ones."""
    solution: str | None
    """A worked solution; None: the answer is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The pairs of a dataset, and what is wrong with its other rows.

    For instance, of three rows of which the second lacks its answer: `places=("line 1", "line 2", "line 3")`,
    examples at 0 and 2, and `faults={1: "has no field `answer`; it has `question`"}`.
    """

    source: str
    """Name of the file or dataset, for messages."""
    places: tuple[str, ...]
    """Where each row is, such as `line 7`; a row's position in this tuple is its number everywhere else."""
    examples: Mapping[int, Example]
    """The pairs, by the position of their row."""
    faults: Mapping[int, str]
    """Why the other rows cannot be used, by position; each continues a sentence that begins with the place."""

    def place(self, position: int) -> str:
        """Where a row is, such as `pairs.jsonl, line 7`."""
        return f"{self.source}, {self.places[position]}"

    def explain(self, position: int) -> str:
        """Why a row cannot be used, such as `pairs.jsonl, line 7 is not JSON: …`."""
        reason = self.faults[position]
        return self.place(position) + (": " if reason.startswith("`") else " ") + reason

    def without(self, faults: Mapping[int, str]) -> "Pairs":
        """The same, but for further rows that cannot be used, each with its reason."""
        kept = {position: pair for position, pair in self.examples.items() if position not in faults}
        return Pairs(source=self.source, places=self.places, examples=kept, faults={**self.faults, **faults})

    def require_good(self, *, skip: bool) -> None:
        """Refuse rows that cannot be used, or, with `skip`, only a source without any pair.

        Raises:
            TaskError: it lists the first rows with their places and reasons, and says how many they are.
        """
        if not self.places:
            raise TaskError(f"{self.source} holds no question/answer pairs")
        if not self.faults or (skip and self.examples):
            return
        count, total = len(self.faults), len(self.places)
        alike = count == total and set(self.faults.values()) == {self.faults[0]} and _NO_FIELD in self.faults[0]
        listed = 1 if alike else _LISTED
        way = ", or set task.skip_bad_rows = true to leave them out" if self.examples else ""
        head = f"{count:,} of the {total:,} rows of {self.source} cannot be used. Correct them{way}:"
        lines = [f"  {self.explain(position)}" for position in sorted(self.faults)[:listed]]
        more = [f"  … and {count - listed:,} more{', all alike' if alike else ''}"] if count > listed else []
        raise TaskError("\n".join([head, *lines, *more]))


def read_pairs(
    source: str,
    rows: Iterable[Row],
    columns: Columns,
    *,
    check: Callable[[Example], object] | None = None,
    left_out: Collection[int] = (),
) -> Pairs:
    """Read every row once.

    Args:
        source: Name of the data, for messages.
        rows: The rows with their places, from `files`.
        columns: Where question, answer and solution are.
        check: Called with each pair; raises ValueError (so TaskError too) where the pair cannot be used.
        left_out: Positions of rows that were left out before; they are not looked at.
    """
    places: list[str] = []
    examples: dict[int, Example] = {}
    faults: dict[int, str] = {}
    for position, (place, row) in enumerate(rows):
        places.append(place)
        if position in left_out:
            faults[position] = "left out before"
            continue
        try:
            if isinstance(row, str):
                raise ValueError(row)
            example = to_example(row, columns)
            if check is not None:
                check(example)
            examples[position] = example
        except ValueError as error:
            faults[position] = str(error)
    return Pairs(source=source, places=tuple(places), examples=examples, faults=faults)


def to_example(row: Mapping[str, Any], columns: Columns) -> Example:
    """A row as an example.

    Raises:
        ValueError: a field is missing or cannot be used.
    """
    value = _field(row, columns.question)
    messages = _of(columns.question, read_messages, value) if isinstance(value, list) else None
    question = last_question(messages) if messages is not None else _of(columns.question, text_of, value)
    accepted = _of(columns.answer, _answers, _field(row, columns.answer))
    solution = accepted[0]
    if columns.solution is not None:
        solution = _of(columns.solution, text_of, _field(row, columns.solution))
    return Example(
        question=question,
        answer=accepted[0],
        solution=solution,
        messages=messages,
        accepted=accepted if len(accepted) > 1 else (),
        row=_plain_columns(row),
    )


def _answers(value: Any) -> tuple[str, ...]:
    """Every accepted answer once, in the order of the row."""
    if not isinstance(value, list):
        return (text_of(value),)
    if not value:
        raise ValueError("is an empty list")
    return tuple(dict.fromkeys(text_of(answer) for answer in value))


def _field(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field; a column of exactly that name is preferred to a field inside another.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    found, value = _look_up(row, name)
    if not found:
        names = [f"`{show(key)[1:-1]}`" for key in list(row)[:_NAMES_SHOWN]]
        raise ValueError(f"{_NO_FIELD} `{name}`; it has {', '.join(names) or 'none'}")
    return value


def _look_up(row: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    if name in row:
        return True, row[name]
    dot = name.find(".")
    while dot > 0:
        inner = row.get(name[:dot])
        if isinstance(inner, Mapping):
            found, value = _look_up(inner, name[dot + 1 :])
            if found:
                return True, value
        dot = name.find(".", dot + 1)
    return False, None


def _of(name: str, read: Callable[[Any], T], value: Any) -> T:
    """What `read` makes of a field's value; an error names the field."""
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"`{name}` {error}") from error


def _plain_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns as plain JSON values; one that holds none, such as the bytes of a picture, is not passed on."""
    columns = {}
    for name, value in row.items():
        try:
            columns[name] = value if type(value) is str else plain(value)
        except ValueError:
            continue
    return columns
