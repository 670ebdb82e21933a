"""Rows of digits, each worked out from the one above: responses of hundreds of tokens that a small model can learn."""

import functools
import random
from typing import Annotated, ClassVar

from steadyrl.options.bounds import Fraction, NotAbove, Within
from steadyrl.tasks.base import WHOLE, Context, Example, RightResponses, Split, TaskError
from steadyrl.tasks.checks import split_of

LABELS = "abcdefghijklmnopqrstuvwxyz"
"""The label of a row is the letter of how many are still to come: the last is `a`."""
_HELD_OUT_SHARE = 1 / 8


class Rows:
    """A row of digits to be summed along itself again and again, modulo ten.

    A row is a label, a sign and `width` digits. The row below x₁…x_w is y₁…y_w with y₁ = x₁ and y_i = x_i ± y_{i−1}.
    Its label is one less: the answer to `c+123` is `b+136a+140`. Every character depends on three others: the one
    before it, the one a row above, and the sign of its row. So a model of any depth can learn it from short problems
    and then solve long ones, and one mistake changes all later rows. Questions and answers are free of noise.

    Args:
        width: Digits of a row.
        min_rows: Fewest rows of a response; one is `width` + 2 tokens.
        max_rows: Most rows of a response.
        teacher_noise: Chance that a worked solution has a random digit; later rows are computed from it.
    """

    kind: ClassVar[str] = "rows"

    def __init__(
        self,
        *,
        seed: int,
        width: Annotated[int, Within(ge=2, le=40)] = 12,
        min_rows: Annotated[int, Within(ge=1, le=25), NotAbove("max_rows")] = 12,
        max_rows: Annotated[int, Within(ge=1, le=25)] = 16,
        teacher_noise: Fraction = 0.0,
    ) -> None:
        """Check the sizes and the noise; nothing is drawn yet."""
        if width < 2:
            raise TaskError(f"task.width = {width}: a row has at least 2 digits")
        if not 1 <= min_rows <= max_rows < len(LABELS):
            raise TaskError(
                f"min_rows = {min_rows}, max_rows = {max_rows}: they must satisfy 1 ≤ min ≤ max ≤ {len(LABELS) - 1}"
            )
        if not 0.0 <= teacher_noise <= 1.0:
            raise TaskError(f"task.teacher_noise = {teacher_noise} must be from 0 to 1")
        self._seed, self._width, self._rows, self._noise = seed, width, (min_rows, max_rows), teacher_noise

    def size(self, split: Split) -> int | None:
        """Every index is a problem."""
        return None

    def example(self, split: Split, index: int) -> Example:
        """The rows at `index`."""
        return _draw(self._seed, split, index, self._width, self._rows, self._noise)

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """1 if there are as many characters as the rows have and the last row is right, else 0."""
        example = self.example(split, index)
        whole = len(completion) == len(example.solution)
        return float(whole and completion.endswith(example.answer))

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """The worked solution of a teacher that makes no mistake."""
        example = _draw(self._seed, split, index, self._width, self._rows, 0.0)
        return RightResponses(forms=(("worked", example.solution),))

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """The last row: its label, its sign and its digits."""
        return completion[-self._width - 2 :] or None


@functools.lru_cache(maxsize=4096)  # the responses of one prompt are verified one after the other
def _draw(seed: int, split: Split, index: int, width: int, rows: tuple[int, int], noise: float) -> Example:
    """Draw first rows from the stream of this index until one belongs to the split."""
    stream = random.Random(f"{seed}/{split}/{index}")
    while True:
        count, sign = stream.randint(*rows), stream.choice("+-")
        digits = [stream.randrange(10) for _ in range(width)]
        question = _written(count, sign, digits)
        if split_of(question, held_out_share=_HELD_OUT_SHARE) == split:
            clean = _worked_out(count, sign, digits, 0.0, stream)
            noisy = _worked_out(count, sign, digits, noise, stream)
            return Example(question=question, answer=clean[-1], solution="".join(noisy))


def _worked_out(count: int, sign: str, digits: list[int], noise: float, stream: random.Random) -> list[str]:
    """The rows below, with some digits wrong if the teacher is noisy."""
    lines = []
    for label in reversed(range(count)):
        below: list[int] = []
        for above in digits:
            before = below[-1] if below else 0
            slip = noise > 0.0 and stream.random() < noise
            below.append(stream.randrange(10) if slip else (above + before if sign == "+" else above - before) % 10)
        digits = below
        lines.append(_written(label, sign, digits))
    return lines


def _written(label: int, sign: str, digits: list[int]) -> str:
    return f"{LABELS[label]}{sign}{''.join(map(str, digits))}"
