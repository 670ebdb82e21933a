"""Question/answer pairs from a JSONL file or a Hugging Face dataset."""

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steadyrl.tasks.answers import Place
from steadyrl.tasks.base import WHOLE, Context, Example, Split, TaskError
from steadyrl.tasks.checks import question_hash
from steadyrl.tasks.own_score import load_function
from steadyrl.tasks.pairs import read_hub, read_jsonl

_LISTED = 10


class Questions:
    """Pairs that somebody wrote, scored by math_verify or by the user's own function.

    Which questions are held out depends on the hash of their text alone: not on a seed, nor on the order of
    the file. A question that occurs twice is in one split only.
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
        held_out: int = 256,
        skip_bad_rows: bool = False,
        leave_out: Collection[str] = (),
    ) -> None:
        """Read all pairs but those at the places `leave_out`, and set `held_out` different questions aside."""
        self._path, self._held_out, self._skip = path, held_out, skip_bad_rows
        fields = {
            "question": question_column,
            "answer": answer_column,
            "solution": solution_column or answer_column,
        }
        pairs = read_jsonl(Path(path), fields) if path.endswith(".jsonl") else read_hub(path, subset, split, fields)
        self._use(pairs, leave_out)
        self._verify = _verifier(score)

    @property
    def examples(self) -> Iterator[Example]:
        """All usable pairs, those too that repeat a held-out question."""
        return iter(self._rows)

    def without(self, faults: Mapping[str, str]) -> "Questions":
        """The task without further rows, by place, each with its reason, such as `has a prompt of 1,120 tokens`.

        Raises:
            TaskError: there are any, and `skip_bad_rows` is off, or too few are left. It lists them with their places.
        """
        if not faults:
            return self
        if not self._skip:
            lines = [f"  {place} {reason}" for place, reason in list(faults.items())[:_LISTED]]
            more = [f"  … and {len(faults) - _LISTED:,} more"] if len(faults) > _LISTED else []
            head = (
                f"{len(faults):,} rows of {self._path} cannot be used. Correct them, or set task.skip_bad_rows = true:"
            )
            raise TaskError("\n".join([head, *lines, *more]))
        other = copy.copy(self)
        other._use(self._rows, [*self._left_out, *faults])
        return other

    def settled(self) -> dict[str, Any]:
        """The parameters by which a worker builds exactly this task, beside those of the recipe's section."""
        return {"leave_out": list(self._left_out)}

    def digest(self) -> str:
        """SHA-256 of the rows in use, split by split and in order, as hexadecimal digits."""
        hashed = hashlib.sha256()
        for split, pairs in self._pairs.items():
            for pair in pairs:
                content = [split, pair.question, pair.answer, pair.solution, pair.accepted, pair.messages, pair.row]
                hashed.update(json.dumps(content).encode())
        return hashed.hexdigest()

    def notices(self) -> list[str]:
        """What a user should know of the data."""
        return [f"{len(self._left_out):,} row(s) of {self._path} left out"] if self._left_out else []

    def _use(self, pairs: Sequence[Example], leave_out: Collection[str]) -> None:
        gone = set(leave_out)
        self._left_out, self._rows = tuple(leave_out), [pair for pair in pairs if pair.place not in gone]
        self._pairs = _divide(self._rows, self._held_out, self._path)

    def size(self, split: Split) -> int | None:
        """How many pairs the split has."""
        return len(self._pairs[split])

    def example(self, split: Split, index: int) -> Example:
        """The pair at `index`: training pairs in the order of the file, held-out ones by their hash."""
        return self._pairs[split][index]

    def score(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """What math_verify, or the user's function, says of the completion."""
        return self._verify(self._pairs[split][index], completion)


def _divide(pairs: list[Example], held_out: int, path: str) -> dict[Split, list[Example]]:
    """Hold out the questions with the lowest hashes, one pair each; train on the pairs of all others."""
    questions = sorted({pair.question for pair in pairs}, key=question_hash)
    if not 0 < held_out < len(questions):
        raise TaskError(
            f"held_out = {held_out}, but {path} has {len(questions)} different question(s): "
            "set aside at least 1 and leave at least 1 to train on"
        )
    # of pairs that share a question, the first by content: the order of the file does not matter
    ordered = sorted(pairs, key=lambda pair: (pair.answer, pair.solution), reverse=True)
    by_question = {pair.question: pair for pair in ordered}
    chosen = questions[:held_out]
    aside = set(chosen)
    return {
        "train": [pair for pair in pairs if pair.question not in aside],
        "held_out": [by_question[question] for question in chosen],
    }


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
