"""A task of your own: in a recipe, `task = "reversal.py:Reversal"`."""

import random
from typing import Annotated, ClassVar

from steadyrl.options.bounds import NotAbove, Within
from steadyrl.tasks.base import WHOLE, Context, Example, RightResponses, Split
from steadyrl.tasks.checks import split_of


class Reversal:
    """Digits to be written backwards.

    Args:
        min_digits: Fewest digits.
        max_digits: Most digits.
    """

    kind: ClassVar[str] = "reversal"

    def __init__(
        self,
        *,
        seed: int,
        min_digits: Annotated[int, Within(ge=1, le=20), NotAbove("max_digits")] = 3,
        max_digits: Annotated[int, Within(ge=1, le=20)] = 6,
    ) -> None:
        """Nothing is drawn yet."""
        self._seed, self._digits = seed, (min_digits, max_digits)

    def size(self, split: Split) -> int | None:
        """Every index is a problem."""
        return None

    def example(self, split: Split, index: int) -> Example:
        """The problem at `index`: digits are drawn until their hash belongs to the split."""
        stream = random.Random(f"{self._seed}/{split}/{index}")
        while True:
            digits = "".join(stream.choice("0123456789") for _ in range(stream.randint(*self._digits)))
            if split_of(digits, held_out_share=1 / 8) == split:
                return Example(question=f"{digits}=", answer=digits[::-1], solution=f">{digits[::-1]}")

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """1 if the answer is right, else 0."""
        return float(self.final_answer(completion) == self.example(split, index).answer)

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """What stands behind the first `>`."""
        return completion.partition(">")[2] or None

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """The worked solution."""
        return RightResponses(forms=(("worked", self.example(split, index).solution),))
