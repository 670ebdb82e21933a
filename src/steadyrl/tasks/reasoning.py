"""Any dataset of reasoning-gym, with that dataset's own verifier."""

import dataclasses
import functools
import hashlib
import os
import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import reasoning_gym
from reasoning_gym.factory import DATASETS, ProceduralDataset

from steadyrl.options.bounds import Fraction, Name
from steadyrl.tasks.base import WHOLE, Context, Example, RightResponses, Split, TaskError
from steadyrl.tasks.checks import require_known, split_of
from steadyrl.tasks.gym_table import refuse_untrusted
from steadyrl.tasks.right import usual_forms

_HELD_OUT_SHARE = 1 / 4  # some generators take seconds per draw, so few draws may fall into the wrong split
_PROBLEMS, _DRAWS = 64, 16  # a generator is made for a block of problems, each with its own draws
_MOST_DRAWS = 1000

# they walk over Python sets of strings, whose order differs between processes unless PYTHONHASHSEED is set
HASH_ORDERED = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
UNREPEATABLE = {
    "codeio": "runs snippets of code that give other problems every time",
    "composite": "takes Python objects, which a recipe cannot hold",
}
# a problem has several right answers, so the answer to another problem may be right
SEVERAL_ANSWERS = frozenset(
    {
        "boxnet",
        "countdown",
        "cryptarithm",
        "graph_color",
        "intermediate_integration",
        "jugs",
        "kakurasu",
        "knight_swap",
        "n_queens",
        "palindrome_generation",
        "propositional_logic",
        "puzzle24",
        "quantum_lock",
        "rubiks_cube",
        "rush_hour",
        "shortest_path",
        "simple_integration",
        "sokoban",
        "tower_of_hanoi",
        "word_ladder",
    }
)


class ReasoningGym:
    """Problems of one dataset of reasoning-gym: endless, and binary rewards from its partial credit.

    Args:
        dataset: Name in reasoning-gym, such as `chain_sum`.
        parameters: Parameters of that dataset, as reasoning-gym spells them (`seed` and `size` are set by the run).
        min_reward: A reward below this counts as 0, and at or above it as 1; reasoning-gym gives partial credit.
        allow_code: Take a dataset whose verifier runs Python code from a response. Off: such a dataset is rejected.
    """

    kind: ClassVar[str] = "reasoning_gym"

    def __init__(
        self,
        *,
        seed: int,
        dataset: Name,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        min_reward: Fraction = 1.0,
        allow_code: bool = False,
    ) -> None:
        """Check the dataset's name and parameters by making its first generator.

        Raises:
            TaskError: the dataset is unknown or gives other problems in every process; or its verifier pays junk or,
                without `allow_code`, runs code that a response holds.
        """
        require_known("reasoning-gym dataset", [dataset], DATASETS)
        known = {field.name for field in dataclasses.fields(DATASETS[dataset][1])} - {"seed", "size"}
        require_known(f"parameter of reasoning-gym's {dataset}", parameters, known)
        _require_repeatable(dataset)
        refuse_untrusted(dataset, min_reward=min_reward, allow_code=allow_code)
        self._seed, self._name, self._parameters, self._min_reward = seed, dataset, parameters, min_reward
        # generators and problems can be slow to make, and each problem is asked for once per response
        self._generator = functools.lru_cache(maxsize=8)(self._make_generator)
        self._entry = functools.lru_cache(maxsize=4096)(self._find_entry)
        self._verifier = self._generator("train", 0, 0)

    def size(self, split: Split) -> int | None:
        """Every index is a problem."""
        return None

    def example(self, split: Split, index: int) -> Example:
        """The problem at `index`; where a dataset has no reference answer, answer and solution are empty."""
        entry = self._entry(split, index)
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return Example(question=entry["question"], answer=answer, solution=answer)

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """1 if the dataset's verifier gives the answer at least `min_reward`, else 0."""
        return float(self.raw_reward(split, index, completion) >= self._min_reward)

    def raw_reward(self, split: Split, index: int, completion: str) -> float:
        """What the dataset's verifier gives the answer, 0 where it raises.

        An answer that the verifier cannot read is wrong. Had it a missing reward instead, a response could escape its
        negative advantage by being unreadable.
        """
        entry, answer = self._entry(split, index), extract_answer(completion)
        try:
            return float(self._verifier.score_answer(answer, entry))
        except Exception:  # the verifier is not ours, and an answer can make it raise anything
            return 0.0

    def metadata(self, split: Split, index: int) -> Mapping[str, Any]:
        """What reasoning-gym knows of the problem at `index`."""
        return self._entry(split, index)["metadata"]

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """The reference answer as it is and in tags; none where the dataset gives no reference."""
        answer = self.example(split, index).answer.strip()
        forms = usual_forms(answer)
        names = ("bare", "tag", "tag after thoughts") if answer else ()
        return RightResponses(
            forms=tuple((name, forms[name]) for name in names), only=self._name not in SEVERAL_ANSWERS
        )

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """What the dataset's verifier is given."""
        return extract_answer(completion) or None

    def _find_entry(self, split: Split, index: int) -> dict[str, Any]:
        """The first of this index's draws whose question belongs to the split."""
        block, row = divmod(index, _PROBLEMS)
        for attempt in range(_MOST_DRAWS):
            round_, draw = divmod(attempt, _DRAWS)
            entry = _item(self._generator(split, block, round_), row * _DRAWS + draw)
            if split_of(entry["question"], held_out_share=_HELD_OUT_SHARE) == split:
                return entry
        raise TaskError(
            f"reasoning-gym's {self._name} gave no {split} problem {index} in {_MOST_DRAWS} draws: with "
            f"parameters = {dict(self._parameters)} it has too few problems; widen their ranges"
        )

    def _make_generator(self, split: Split, block: int, round_: int) -> ProceduralDataset:
        """A generator with a separate seed for one block of problems."""
        digest = hashlib.sha256(f"{self._seed}/{split}/{block}/{round_}".encode()).digest()
        seed, size = int.from_bytes(digest[:4]) >> 1, _PROBLEMS * _DRAWS
        try:
            return reasoning_gym.create_dataset(self._name, seed=seed, size=size, **self._parameters)
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            raise TaskError(
                f"reasoning-gym's {self._name} refuses parameters = {dict(self._parameters)}: {error}"
            ) from error


def _require_repeatable(dataset: str) -> None:
    """Refuse what a worker, or a resumed run, would see differently."""
    if dataset in UNREPEATABLE:
        raise TaskError(f"reasoning-gym's {dataset} {UNREPEATABLE[dataset]}; use another dataset")
    if dataset in HASH_ORDERED and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        raise TaskError(
            f"reasoning-gym's {dataset} draws other problems in every process; "
            "set the environment variable PYTHONHASHSEED=0 before the run"
        )


def extract_answer(completion: str) -> str:
    """What a completion answers: its last `<answer>…</answer>`, or all of it where it has none."""
    _, opened, rest = completion.rpartition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    return answer.strip() if opened and closed else completion.strip()


def _item(generator: ProceduralDataset, index: int) -> dict[str, Any]:
    """One entry. A few datasets draw from the global `random`, so it is seeded here and put back after."""
    state = random.getstate()
    random.seed(f"{generator.seed}/{index}")
    try:
        return generator[index]
    finally:
        random.setstate(state)
