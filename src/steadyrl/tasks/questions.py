"""Question/answer pairs from a file, a folder or a Hugging Face dataset."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from steadyrl.options.bounds import Fixed, PathOrName, PositiveInt
from steadyrl.tasks.answers import Place, final_answer
from steadyrl.tasks.base import WHOLE, Context, Example, Graded, RightResponses, Split, TaskError
from steadyrl.tasks.calling import RewardFunction
from steadyrl.tasks.held_out import by_question, choose, count_near
from steadyrl.tasks.own_reward import function_file, load_function
from steadyrl.tasks.pairs import Columns, Pairs, explain, read_pairs
from steadyrl.tasks.patience import watched
from steadyrl.tasks.right import right_answers
from steadyrl.tasks.sources import read_source

_FIXED = Fixed("it would train on held-out pairs")


class Questions:
    """Pairs that somebody wrote, verified by math_verify or by the user's own function.

    Which questions are held out depends on their text alone: not on a seed, nor on the order of the file. A question
    is in one split only, however it is spaced or its accents are encoded.

    Every row is read and checked when the task is built. What only the model can say of a row, such as that its
    prompt is too long, comes in later, by `without`. A worker process builds the same task from the recipe's section
    and `settled()`: it leaves out the same rows, and notices where the data are not the same any more.

    Args:
        path: A file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv` or `.parquet`, each also with `.gz`); or the
            folder, or the name, of a Hugging Face dataset.
        subset: Configuration of the Hugging Face dataset, where it has several, such as `main` of `openai/gsm8k`.
        split: Split of the Hugging Face dataset; a file has none.
        question_column: Field that holds the question, or the messages of a conversation; `a.b` is the field `b`
            of `a`.
        answer_column: Field that holds the reference answer, or a list of accepted ones.
        solution_column: Field that holds a worked solution, which the cold start imitates; without it, the answer.
        answer: Where `math_verify` looks for a response's answer: in the last `\\boxed{}`, in `<answer>` tags, or
            in the last number; `auto` tries them in this order, and `####` and "the answer is" too.
        skip_bad_rows: Leave rows out that cannot be used, and count them; off: they are rejected.
        reward: `math_verify`, or your own function as `file.py:function`. The names of its parameters say what it
            gets: `reward(prompt, completion)`, TRL's `reward(prompts, completions)`, or verl's
            `compute_score(data_source, solution_str, ground_truth, extra_info)`; also `answer`, `prompt_text`,
            `finish_reason`, `token_ids`, any column, and `**kwargs`. It returns a number, or a dict with the
            number `score`; other numbers in it are logged as `reward/<name>`.
        held_out: How many pairs are set aside for evaluation; never trained on.
    """

    kind: ClassVar[str] = "questions"

    def __init__(
        self,
        *,
        path: Annotated[PathOrName, _FIXED],
        subset: Annotated[str | None, _FIXED] = None,
        split: Annotated[str, _FIXED] = "train",
        question_column: Annotated[str, _FIXED] = "question",
        answer_column: Annotated[str, _FIXED] = "answer",
        solution_column: str | None = None,
        answer: Place = "auto",
        skip_bad_rows: Annotated[bool, _FIXED] = False,
        reward: PathOrName = "math_verify",
        held_out: Annotated[PositiveInt, _FIXED] = 256,
        sets: Sequence[Mapping[str, Any]] = (),
        leave_out: Collection[str] = (),
        digest: str | None = None,
    ) -> None:
        """Read all pairs and set `held_out` different questions aside.

        Args:
            sets: Further sets that are only evaluated: `name`, `path`, `subset`, `split` and the two columns of each.
                Nothing is trained on whose question is in one of them.
            leave_out: Places of rows that are not used, such as `pairs.jsonl, line 7`.
            digest: That of another task of the same data and `leave_out`. The rows must be the same; answers that
                were checked there are not checked again.

        Raises:
            TaskError: the data cannot be read, rows cannot be used, or too few are left.
        """
        self._path = path
        self.own_file = None if reward == "math_verify" else function_file(reward)
        """Where the user's reward function is, if there is one; it is loaded when it is first needed."""
        self._math = None if self.own_file else _math_verifier(answer)
        self._reward, self._has_solutions = reward, solution_column is not None
        self._place: Place = answer
        self._held_out, self._skip = held_out, skip_bad_rows
        check = None if digest else _reference_check(reward)

        def read(path: str, subset: str | None, split: str, columns: Columns) -> Pairs:
            source, rows = read_source(path, subset=subset, split=split)
            rows = rows if digest else watched(rows, f"reading {source}")  # a worker is silent
            return read_pairs(source, rows, columns, check=check, leave_out=leave_out)

        columns = Columns(question=question_column, answer=answer_column, solution=solution_column)
        self._use(
            read(path, subset, split, columns),
            {
                one["name"]: read(
                    one["path"],
                    one["subset"],
                    one["split"],
                    Columns(question=one["question_column"], answer=one["answer_column"], solution=None),
                )
                for one in sets
            },
        )
        if digest not in (None, self.digest()):
            raise TaskError(f"the rows of {path} have changed since the run began; restore them, or begin a new run")

    def size(self, split: Split) -> int:
        """How many pairs the split has."""
        return len(self._pairs[split])

    def example(self, split: Split, index: int) -> Example:
        """The pair at `index`: training pairs and sets in the order of the file, held-out pairs by their hash."""
        return self._pairs[split][index]

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> Graded:
        """What math_verify, or the user's function, says of the completion."""
        pair = self._pairs[split][index]
        if self._math is not None:
            return self._math(pair, completion, context)
        returned: Any = self.own_function([pair], [completion], [context])
        return returned[0] if self.own_function.form == "trl" else returned

    @functools.cached_property
    def own_function(self) -> RewardFunction:
        """The user's reward function.

        Raises:
            TaskError: it cannot be loaded, or called with what there is.
        """
        assert self.own_file is not None
        function = load_function(self.own_file)
        return RewardFunction(
            function,
            label=self.own_file.label,
            example=self._pairs["train"][0],
            data_source=self._path,
            columns=dict.fromkeys(name for pairs in self._pairs.values() for pair in pairs for name in pair.row),
        )

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """The reference answer in the usual forms; for a user's own function, the worked solution too."""
        return right_answers(
            self._pairs[split][index],
            reward=self._reward,
            place=self._place,
            solved=self._has_solutions,
        )

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """The final answer, from the place that `task.answer` says that it stands."""
        return final_answer(
            completion, place=self._place, prompt_text=context.prompt_text, finish_reason=context.finish_reason
        )

    @property
    def examples(self) -> Iterator[Example]:
        """All usable pairs, those of the sets too, and those that repeat a held-out question."""
        return (pair for rows in (self._rows, *self._sets.values()) for pair in rows.examples)

    @property
    def left_out(self) -> dict[str, str]:
        """The rows that are left out, by place, each with its reason."""
        return {place: reason for rows in (self._rows, *self._sets.values()) for place, reason in rows.faults.items()}

    def without(self, faults: Mapping[str, str]) -> "Questions":
        """The task without further rows, by place, each with its reason, such as `has a prompt of 1,120 tokens`.

        Raises:
            TaskError: there are any, and `skip_bad_rows` is off, or too few are left. It lists them with their places.
        """
        if not faults:
            return self
        other = copy.copy(self)
        other._use(self._rows.without(faults), {name: rows.without(faults) for name, rows in self._sets.items()})
        return other

    def settled(self) -> dict[str, Any]:
        """The parameters by which a worker builds exactly this task, beside those of the recipe's section."""
        return {"leave_out": list(self.left_out), "digest": self.digest()}

    def digest(self, *splits: Split) -> str:
        """SHA-256 of the rows in use, split by split and in order, as hexadecimal digits; by default of all splits."""
        hashed = hashlib.sha256()
        for split in splits or self._pairs:
            pairs = self._pairs[split]
            hashed.update(_canonical([split, len(pairs)]).encode())
            for pair in pairs:
                content = [pair.question, pair.answer, pair.solution, pair.accepted, pair.messages, pair.row]
                hashed.update(_canonical(content).encode())
        return hashed.hexdigest()

    def warnings(self) -> list[str]:
        """What a user should know of the data: rows left out, questions nearly alike, questions of the sets."""
        said = []
        if left_out := self.left_out:
            said.append(f"{len(left_out):,} row(s) left out; {explain(*next(iter(left_out.items())))}")
        if self._near:
            said.append(
                f"{self._near:,} question(s) of {self._rows.source} differ from another one in spaces or encoding "
                "only; they are in the same split"
            )
        if self._shared:
            said.append(
                f"{self._shared:,} training pair(s) of {self._rows.source} left out: their question is in one of "
                "evaluate.sets"
            )
        return said

    def _use(self, rows: Pairs, sets: Mapping[str, Pairs]) -> None:
        """Take these pairs and divide them."""
        for pairs in (rows, *sets.values()):
            pairs.require_good(skip=self._skip)
        groups = by_question(rows.examples)
        aside, held_out = choose(groups, self._held_out, rows.source)
        tested = by_question(pair for pairs in sets.values() for pair in pairs.examples).keys() - aside
        trained = {id(pair) for key in groups.keys() - aside - tested for pair in groups[key]}
        if not trained:
            raise TaskError(f"every training question of {rows.source} is in one of evaluate.sets; none is left")
        self._rows, self._sets = rows, sets
        self._near = count_near(groups)
        self._shared = sum(len(groups[key]) for key in tested if key in groups)
        self._pairs: dict[str, list[Example]] = {
            "train": [pair for pair in rows.examples if id(pair) in trained],
            "held_out": held_out,
            **{name: list(pairs.examples) for name, pairs in sets.items()},
        }


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _reference_check(reward: str) -> Callable[[Example], None] | None:
    """What reads the reference answers of a pair; None where the user's own function alone knows what they mean."""
    if reward != "math_verify":
        return None
    from steadyrl.tasks.math_answers import read_reference

    good: set[str] = set()

    def check(pair: Example) -> None:
        for answer in pair.accepted or (pair.answer,):
            if answer not in good:
                read_reference(answer)
                good.add(answer)

    return check


def _math_verifier(place: Place) -> Callable[[Example, str, Context], float]:
    """math_verify loads sympy: it is imported only where used."""
    from steadyrl.tasks.math_answers import math_verify_reward

    def verify(pair: Example, completion: str, context: Context) -> float:
        return math_verify_reward(
            pair.accepted or pair.answer,
            completion,
            place=place,
            prompt_text=context.prompt_text,
            finish_reason=context.finish_reason,
            question=pair.question,
        )

    return verify
