"""Question/answer pairs from a file, a folder or a Hugging Face dataset."""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from steadyrl.tasks.answers import Place
from steadyrl.tasks.base import WHOLE, Context, Example, Split, TaskError
from steadyrl.tasks.held_out import divide, spellings
from steadyrl.tasks.own_score import load_function
from steadyrl.tasks.pairs import Columns, Pairs, read_pairs
from steadyrl.tasks.patience import watched
from steadyrl.tasks.sources import read_source


class Questions:
    """Pairs that somebody wrote, scored by math_verify or by the user's own function.

    Which questions are held out depends on their text alone: not on a seed, nor on the order of the file. A question
    is in one split only, however it is spaced or its accents are encoded.

    Every row is read and checked when the task is built. What only the model can say of a row, such as that its
    prompt is too long, comes in later, by `without`. A worker process builds the same task from the recipe's section
    and what `settled` returns: it leaves out the same rows, and notices where the data are not the same any more.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        question_column: str = "question",
        answer_column: str = "answer",
        solution_column: str | None = None,
        score: str = "math_verify",
        answer: Place = "auto",
        held_out: int | None = 256,
        skip_bad_rows: bool = False,
        left_out: Collection[int] | None = None,
        digest: str | None = None,
    ) -> None:
        """Read all pairs and set `held_out` different questions aside.

        Args:
            path, subset, split: What to read, as `sources.read_source` says.
            question_column, answer_column, solution_column: The columns, as `pairs.Columns` says.
            score: `math_verify`, or `file.py:function`.
            answer: Where `math_verify` looks for the answer of a response.
            held_out: How many questions; None: every pair, each in its place, and nothing to train on.
            skip_bad_rows: Leave rows out that cannot be used; else they are refused.
            left_out: Positions of rows that another task of the same data left out. Then no other row may be bad.
            digest: That of the other task. The rows must be the same; their answers are not checked again.

        Raises:
            TaskError: the data cannot be read, rows cannot be used, or too few are left.
        """
        columns = Columns(question=question_column, answer=answer_column, solution=solution_column)
        rows = read_source(path, subset=subset, split=split)
        self._held_out, self._skip = held_out, skip_bad_rows and left_out is None
        pairs = read_pairs(
            path,
            rows if digest else watched(rows, f"reading {path}"),
            columns,
            check=None if digest else _reference_check(score),
            left_out=frozenset(left_out or ()),
        )
        self._use(pairs)
        if digest not in (None, self.digest()):
            raise TaskError(f"the rows of {path} have changed since the run began; restore them, or begin a new run")
        self._verify = _verifier(score)

    def size(self, split: Split) -> int | None:
        """How many pairs the split has."""
        return len(self._positions[split])

    def example(self, split: Split, index: int) -> Example:
        """The pair at `index`: training pairs in the order of the file, held-out ones by their hash."""
        return self._pairs.examples[self._positions[split][index]]

    def score(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """What math_verify, or the user's function, says of the completion."""
        return self._verify(self.example(split, index), completion)

    def place(self, split: Split, index: int) -> str:
        """Where the row of a pair is, such as `pairs.jsonl, line 7`."""
        return self._pairs.place(self._positions[split][index])

    @property
    def examples(self) -> Mapping[int, Example]:
        """All usable pairs by the position of their row, also those that repeat a held-out question."""
        return self._pairs.examples

    @property
    def left_out(self) -> Mapping[int, str]:
        """The rows that are left out, by position, each with its reason."""
        return self._pairs.faults

    def without(self, faults: Mapping[int, str]) -> "Questions":
        """The task without further rows, by position, each with the reason, such as `has a prompt of 1,120 tokens`.

        Raises:
            TaskError: there are any, and `skip_bad_rows` is off, or too few are left. It lists them with their places.
        """
        if not faults:
            return self
        other = copy.copy(self)
        other._use(self._pairs.without(faults))
        return other

    def settled(self) -> dict[str, Any]:
        """The parameters by which a worker builds exactly this task, beside those of the recipe's section."""
        return {"left_out": sorted(self.left_out), "digest": self.digest()}

    def digest(self) -> str:
        """SHA-256 of the rows in use, in the order of each split, as hexadecimal digits."""
        hashed = hashlib.sha256()
        for split, positions in self._positions.items():
            hashed.update(f"{split} {len(positions)}\n".encode())
            for position in positions:
                pair = self._pairs.examples[position]
                content = [pair.question, pair.answer, pair.solution, pair.accepted, pair.messages, pair.row]
                hashed.update(_canonical(content).encode())
        return hashed.hexdigest()

    def notices(self) -> list[str]:
        """What a user should know of the data: rows left out, and questions that are nearly alike."""
        source, said = self._pairs.source, []
        if bad := self.left_out:
            first = min(bad)
            said.append(
                f"{len(bad):,} row(s) of {source} left out; the first: {self._pairs.places[first]}: {bad[first]}"
            )
        if count := sum(len(texts) - 1 for texts in spellings(self._pairs.examples).values()):
            said.append(
                f"{count:,} question(s) of {source} differ from another one in spaces or encoding only; "
                "they are in the same split"
            )
        return said

    def shared_with(self, other: "Questions") -> int:
        """How many of this task's held-out questions are among those that `other` trains on."""
        trained = spellings({at: other.examples[at] for at in other._positions["train"]})
        return len(spellings({at: self.examples[at] for at in self._positions["held_out"]}).keys() & trained.keys())

    def _use(self, pairs: Pairs) -> None:
        """Take these pairs and divide them."""
        pairs.require_good(skip=self._skip)
        self._pairs = pairs
        self._positions = divide(pairs.examples, self._held_out, pairs.source)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _reference_check(score: str) -> Callable[[Example], None] | None:
    """What reads the reference answers of a pair; None where the user's own function alone knows what they mean."""
    if score != "math_verify":
        return None
    from steadyrl.tasks.math_answers import read_reference

    good: set[str] = set()

    def check(pair: Example) -> None:
        for answer in pair.accepted or (pair.answer,):
            if answer not in good:
                read_reference(answer)
                good.add(answer)

    return check


def _verifier(score: str) -> Callable[[Example, str], float]:
    """What scores a completion for a pair. math_verify loads sympy: it is imported only where used."""
    if score == "math_verify":
        from steadyrl.tasks.math_answers import math_verify_score

        return lambda pair, completion: math_verify_score(pair.answer, completion)
    file, colon, name = score.rpartition(":")
    if not (file and colon and name):
        raise TaskError(f"score = {score!r} is neither `math_verify` nor `file.py:function`")
    own = load_function(Path(file), name)
    if "answer" in inspect.signature(own).parameters:
        return lambda pair, completion: own(pair.question, completion, answer=pair.answer)
    return lambda pair, completion: own(pair.question, completion)
