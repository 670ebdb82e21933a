"""What a table of rewards says of a policy: accuracy, mean reward, pass@k and maj@k, with missing rewards left out.

A prompt is a row, its samples are the columns. `known` says which rewards there are; None: all of them. A prompt
without any reward is left out of every mean.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

_Z = 1.959964  # the 97.5% quantile of the normal distribution


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over prompts with a 95% interval; NaN where no prompt has a reward."""

    value: float
    """The mean."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


_NOTHING = Estimate(value=math.nan, low=math.nan, high=math.nan)


def accuracy(
    correct: Float[Tensor, "prompts samples"], known: Bool[Tensor, "prompts samples"] | None = None
) -> Estimate:
    """avg@k and its Wilson interval.

    Samples of one prompt are not independent, so the interval uses the effective number of samples p(1−p)/s². Here s is
    the standard error of the mean of the prompts' means. The effective number is at most the number of samples. If the
    means of all prompts are equal, it is the number of prompts.
    """
    means, drawn = _prompt_means(correct, known)
    if not len(means):
        return _NOTHING
    prompts, p = len(means), float(means.mean())
    variance = float(means.var(correction=1)) / prompts if prompts > 1 else 0.0
    n = min(p * (1.0 - p) / variance, float(drawn)) if variance > 0.0 else float(prompts)
    z = _Z
    centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * math.sqrt(p * (1.0 - p) / n + z * z / (4.0 * n * n))
    return Estimate(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)))


def mean_reward(
    rewards: Float[Tensor, "prompts samples"], known: Bool[Tensor, "prompts samples"] | None = None
) -> Estimate:
    """The mean reward and its interval, over the prompts' means.

    Rewards of 0 and 1 alone are a share, with the interval of `accuracy`. Of others it is m ± t s/√n, with n prompts,
    s the standard deviation of their means, and t of Student's distribution. Equal means show no spread: their
    interval has no width. One prompt has no interval (NaN).
    """
    held = rewards if known is None else rewards[known]
    if ((held == 0.0) | (held == 1.0)).all():
        return accuracy(rewards, known)
    means, _ = _prompt_means(rewards, known)
    value, n = float(means.mean()), len(means)
    half = student(n - 1) * float(means.std(correction=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(value=value, low=value - half, high=value + half)


def _prompt_means(
    values: Float[Tensor, "prompts samples"], known: Bool[Tensor, "prompts samples"] | None
) -> tuple[Tensor, int]:
    """Mean over the samples of each prompt that has a reward, in float64, and how many rewards there are."""
    if known is None or bool(known.all()):
        return values.mean(dim=1).double(), values.numel()
    counts = known.sum(dim=1)
    means = values.where(known, 0.0).sum(dim=1) / counts
    return means[counts > 0].double(), int(counts.sum())


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's distribution.

    From the normal one by the expansion of Abramowitz and Stegun, 26.7.5; within 0.2% from 3 degrees of freedom on, and
    exact for 1 and 2, whose distribution has an inverse in closed form.
    """
    if freedom <= 2:
        p = 0.975
        return (
            math.tan(math.pi * (p - 0.5)) if freedom == 1 else (2.0 * p - 1.0) * math.sqrt(1.0 / (2.0 * p * (1.0 - p)))
        )
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def sizes(samples: int) -> list[int]:
    """The k of pass@k and maj@k: 2, 4, 8, … and the number of samples; none for one sample."""
    return sorted({2**n for n in range(1, samples.bit_length()) if 2**n <= samples} | {samples} - {1})


def pass_at(k: int, correct: Sequence[Sequence[bool]]) -> float | None:
    """pass@k: the chance that at least one of k responses to a prompt is right, averaged over prompts.

    1 − C(n−c, k)/C(n, k) for a prompt with n responses, c of them right: unbiased (arXiv 2107.03374, eq. 1).

    Args:
        k: at least 1.
        correct: for each prompt, whether each response that has a reward is right.

    Returns:
        None where no prompt has k responses that have a reward.
    """
    asked = [row for row in correct if len(row) >= k]
    missed = [math.comb(len(row) - sum(row), k) / math.comb(len(row), k) for row in asked]
    return sum(1.0 - chance for chance in missed) / len(asked) if asked else None


def maj_at(k: int, answers: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool]]) -> float | None:
    """maj@k: how often the most frequent of k final answers is right, averaged over prompts.

    Each prompt's responses are taken in blocks of k, in their order; a rest is left out. In a block an answer has one
    vote per response, a response without an answer has none, and an answer is as right as its responses are on
    average. Of answers with equally many votes the mean is taken: the expectation, if one of them were drawn.

    Args:
        k: at least 1.
        answers: for each prompt, the final answer of each response that has a reward, or None.
        correct: whether each of these responses is right.

    Returns:
        None where no prompt has k such responses, or no response has an answer.
    """
    if not any(answer is not None for row in answers for answer in row):
        return None
    asked = [
        [_elected(row[at : at + k], right[at : at + k]) for at in range(0, len(row) - k + 1, k)]
        for row, right in zip(answers, correct, strict=True)
        if len(row) >= k
    ]
    return sum(sum(blocks) / len(blocks) for blocks in asked) / len(asked) if asked else None


def _elected(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    votes: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            votes.setdefault(ballot(answer), []).append(right)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    winners = [sum(rights) / len(rights) for rights in votes.values() if len(rights) == most]
    return sum(winners) / len(winners)


def ballot(answer: str) -> str:
    """An answer as it is counted: the same for ` 1,000.0 `, `$1000$` and `1000.`, and for `Paris` and `paris`."""
    text = unicodedata.normalize("NFKC", answer).casefold()
    text = " ".join(text.replace("$", " ").split()).rstrip(".").rstrip()
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)", text, re.ASCII):
        whole, _, fraction = text.lstrip("+-").partition(".")
        sign = "-" if text.startswith("-") else ""
        number = f"{whole.lstrip('0') or '0'}.{fraction.rstrip('0')}".rstrip(".")
        return number if number == "0" else sign + number
    return text
