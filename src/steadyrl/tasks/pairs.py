"""From rows to question/answer pairs. What is wrong is kept by row, so that one error tells it all."""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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

    For instance, of three rows of which the second lacks its answer: two examples, and
    `faults={"pairs.jsonl, line 2": "has no field `answer`; it has `question`"}`.
    """

    source: str
    """Name of the file or dataset, for messages."""
    rows: int
    """How many rows there are."""
    examples: Sequence[Example]
    """The pairs, in the order of their rows."""
    faults: Mapping[str, str]
    """Why other rows cannot be used, by place, such as `is not JSON: …`."""

    def without(self, faults: Mapping[str, str]) -> "Pairs":
        """The same, but for further rows that cannot be used, by place, each with its reason."""
        kept = [pair for pair in self.examples if pair.place not in faults]
        gone = {pair.place: faults[pair.place] for pair in self.examples if pair.place in faults}
        return Pairs(source=self.source, rows=self.rows, examples=kept, faults={**self.faults, **gone})

    def require_good(self, *, skip: bool) -> None:
        """Refuse rows that cannot be used, or, with `skip`, only a source without any pair.

        Raises:
            TaskError: it lists the first rows with their places and reasons, and says how many they are.
        """
        if not self.rows:
            raise TaskError(f"{self.source} holds no question/answer pairs")
        if not self.faults or (skip and self.examples):
            return
        count, reasons = len(self.faults), list(self.faults.values())
        alike = not self.examples and len(set(reasons)) == 1 and reasons[0].startswith(_NO_FIELD)
        listed = 1 if alike else _LISTED
        way = ", or set task.skip_bad_rows = true to leave them out" if self.examples else ""
        head = f"{count:,} of the {self.rows:,} rows of {self.source} cannot be used. Correct them{way}:"
        lines = [f"  {explain(*fault)}" for fault in itertools.islice(self.faults.items(), listed)]
        more = [f"  … and {count - listed:,} more{', all alike' if alike else ''}"] if count > listed else []
        raise TaskError("\n".join([head, *lines, *more]))


def explain(place: str, reason: str) -> str:
    """Why a row cannot be used, such as `pairs.jsonl, line 7 is not JSON: …`."""
    return f"{place} {reason}" if reason.startswith(("is ", "has ", "holds ", "loses ")) else f"{place}: {reason}"


def read_pairs(
    source: str,
    rows: Iterable[Row],
    columns: Columns,
    *,
    check: Callable[[Example], object] | None = None,
    leave_out: Collection[str] = (),
) -> Pairs:
    """Read every row once.

    Args:
        source: Name of the data, for messages.
        rows: The rows with their places, from `sources`.
        columns: Where question, answer and solution are.
        check: Called with each pair; raises TaskError where its answer cannot be used.
        leave_out: Places of rows that are skipped, such as `pairs.jsonl, line 7`.
    """
    count, examples, faults, unwanted = 0, [], {}, frozenset(leave_out)
    for where, row in rows:
        count += 1
        place = f"{source}, {where}"
        if place in unwanted:
            faults[place] = "is left out"
            continue
        try:
            if isinstance(row, str):
                raise ValueError(row)
            example = to_example(row, columns, place)
            if check is not None:
                check(example)
            examples.append(example)
        except TaskError as error:
            faults[place] = f"`{columns.answer}`: {error}"
        except ValueError as error:
            faults[place] = str(error)
    return Pairs(source=source, rows=count, examples=examples, faults=faults)


def to_example(row: Mapping[str, Any], columns: Columns, place: str = "") -> Example:
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
        place=place,
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
