"""Question/answer pairs from a JSONL file or a Hugging Face dataset."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steadyrl.tasks.answers import Place
from steadyrl.tasks.base import WHOLE, Context, Example, Graded, Split, TaskError
from steadyrl.tasks.calling import ScoreFunction
from steadyrl.tasks.checks import question_hash
from steadyrl.tasks.own_score import function_file, load_function
from steadyrl.tasks.pairs import read_hub, read_jsonl


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
    ) -> None:
        """Read all pairs and set `held_out` different questions aside."""
        fields = {
            "question": question_column,
            "answer": answer_column,
            "solution": solution_column or answer_column,
        }
        pairs = read_jsonl(Path(path), fields) if path.endswith(".jsonl") else read_hub(path, subset, split, fields)
        self._pairs = _divide(pairs, held_out, path)
        self._path = path
        self.own_file = None if score == "math_verify" else function_file(score)
        """Where the user's score function is, if it scores; it is loaded when it is first needed."""
        self._math = None if self.own_file else _math_verifier(answer)

    def size(self, split: Split) -> int | None:
        """How many pairs the split has."""
        return len(self._pairs[split])

    def example(self, split: Split, index: int) -> Example:
        """The pair at `index`: training pairs in the order of the file, held-out ones by their hash."""
        return self._pairs[split][index]

    def score(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> Graded:
        """What math_verify, or the user's function, says of the completion."""
        pair = self._pairs[split][index]
        if self._math is not None:
            return self._math(pair, completion, context)
        returned: Any = self.own_function([pair], [completion], [context])
        return returned[0] if self.own_function.form == "trl" else returned

    @functools.cached_property
    def own_function(self) -> ScoreFunction:
        """The user's score function.

        Raises:
            TaskError: it cannot be loaded, or called with what there is.
        """
        assert self.own_file is not None
        function = load_function(self.own_file)
        example = self._pairs["train"][0]
        return ScoreFunction(function, label=self.own_file.label, example=example, data_source=self._path)


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


def _math_verifier(place: Place) -> Callable[[Example, str, Context], float]:
    """math_verify loads sympy: it is imported only where used."""
    from steadyrl.tasks.math_answers import math_verify_score

    return lambda pair, completion, context: math_verify_score(pair.answer, completion)
