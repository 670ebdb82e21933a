"""Chains of + and − modulo ten: endless, cheap to verify, and hard for a model that skips a step."""

import functools
import random
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from steadyrl.options.bounds import Fraction, NotAbove, Within
from steadyrl.tasks.base import WHOLE, Context, Example, RightResponses, Split, TaskError
from steadyrl.tasks.checks import require_known, split_of

_HELD_OUT_SHARE = 1 / 8
_INVERSE = {"+": "-", "-": "+"}


def _step(total: int, sign: str, digit: int, result: int) -> str:
    return f"{total}{sign}{digit}={result};"


def _checked_step(total: int, sign: str, digit: int, result: int) -> str:
    """The step and its inverse, which is right: after a mistake it does not lead back."""
    back = (result - digit if sign == "+" else result + digit) % 10
    return _step(total, sign, digit, result) + _step(result, _INVERSE[sign], digit, back)


STYLES: dict[str, Callable[[int, str, int, int], str]] = {
    "steps": _step,
    "short": lambda total, sign, digit, result: f"{total}{sign}{digit};",
    "checked": _checked_step,
}
"""How a solution writes one step."""


class Chains:
    """Digits joined by + and −, worked out from left to right modulo ten.

    A solution writes every running total and then the answer behind `>`. `teacher_noise` makes an imperfect teacher,
    which leaves reinforcement learning something to improve. Questions and answers are free of noise.

    Args:
        min_terms: Fewest digits in a chain.
        max_terms: Most digits in a chain.
        teacher_noise: Chance that a worked solution replaces a running total by a random digit, and carries it on.
        style: How a worked solution writes 3 + 9: 3+9=2; or short, 3+9; or with its inverse, 3+9=2;2-9=3;
    """

    kind: ClassVar[str] = "chains"

    def __init__(
        self,
        *,
        seed: int,
        min_terms: Annotated[int, Within(ge=2, le=40), NotAbove("max_terms")] = 3,
        max_terms: Annotated[int, Within(ge=2, le=40)] = 8,
        teacher_noise: Fraction = 0.0,
        style: Literal["steps", "short", "checked"] = "steps",
    ) -> None:
        """Check the lengths, the noise and the style; nothing is drawn yet."""
        if not 2 <= min_terms <= max_terms:
            raise TaskError(f"min_terms = {min_terms}, max_terms = {max_terms}: they must satisfy 2 ≤ min ≤ max")
        if not 0.0 <= teacher_noise <= 1.0:
            raise TaskError(f"task.teacher_noise = {teacher_noise} must be from 0 to 1")
        require_known("task.style", [style], STYLES)
        self._seed, self._terms, self._noise, self._style = seed, (min_terms, max_terms), teacher_noise, style

    def size(self, split: Split) -> int | None:
        """Every index is a problem."""
        return None

    def example(self, split: Split, index: int) -> Example:
        """The chain at `index`."""
        return _draw(self._seed, split, index, self._terms, self._noise, self._style)

    def reward(self, split: Split, index: int, completion: str, context: Context = WHOLE) -> float:
        """1 if there is one `>` and behind it exactly the answer, else 0; the steps are not checked."""
        answer = self.example(split, index).answer
        return float(self.final_answer(completion) == answer)

    def final_answer(self, completion: str, context: Context = WHOLE) -> str | None:
        """The text after the first `>`."""
        return completion.partition(">")[2].strip() or None

    def right_responses(self, split: Split, index: int) -> RightResponses:
        """The worked solution of a teacher that makes no mistake."""
        example = _draw(self._seed, split, index, self._terms, 0.0, self._style)
        return RightResponses(forms=(("worked", example.solution),))


@functools.lru_cache(maxsize=4096)  # the responses of one prompt are verified one after the other
def _draw(seed: int, split: Split, index: int, terms: tuple[int, int], noise: float, style: str) -> Example:
    """Draw chains from the stream of this index until one belongs to the split."""
    stream = random.Random(f"{seed}/{split}/{index}")
    while True:
        digits = [stream.randrange(10) for _ in range(stream.randint(*terms))]
        signs = [stream.choice("+-") for _ in digits[1:]]
        question = str(digits[0]) + "".join(f"{s}{d}" for s, d in zip(signs, digits[1:], strict=True)) + "="
        if split_of(question, held_out_share=_HELD_OUT_SHARE) == split:
            answer = sum(d if s == "+" else -d for s, d in zip(["+", *signs], digits, strict=True)) % 10
            solution = _work_out(digits, signs, noise, stream, style)
            return Example(question=question, answer=str(answer), solution=solution)


def _work_out(digits: list[int], signs: list[str], noise: float, stream: random.Random, style: str) -> str:
    """The running totals, some of them wrong if the teacher is noisy, and the last one as the answer."""
    total, steps = digits[0], ""
    for sign, digit in zip(signs, digits[1:], strict=True):
        result = (total + digit if sign == "+" else total - digit) % 10
        if stream.random() < noise:
            result = stream.randrange(10)
        steps += STYLES[style](total, sign, digit, result)
        total = result
    return f"{steps}>{total}"
