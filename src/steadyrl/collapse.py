"""What a collapse is, decided once."""

from collections.abc import Sequence
from itertools import accumulate, takewhile

FALLS_BELOW = 2 / 3
"""A run has collapsed once its reward is below this share of its best so far, and stays there to the end."""
WINDOW = 8
"""The reward is averaged over this many gradient updates first."""
STAYS = 1 / 12
"""Share of a run for which it must have stayed there to be told from noise, and two steps at least."""


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, fewer at the beginning."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def below(rewards: Sequence[float], *, minibatches: int) -> list[bool]:
    """Whether, at every global step, the smoothed reward is below FALLS_BELOW of its running best.

    Args:
        rewards: mean reward of every global step.
        minibatches: N, the gradient updates of a global step.
    """
    smooth = smoothed(rewards, max(1, WINDOW // minibatches))
    return [value < FALLS_BELOW * best for value, best in zip(smooth, accumulate(smooth, max), strict=True)]


def collapse_step(rewards: Sequence[float], *, minibatches: int) -> int | None:
    """Index of the global step at which a run collapsed, or None.

    The smoothed reward is `below` from that step to the last, for STAYS of the run and two steps at least.

    Args:
        rewards: mean reward of every global step.
        minibatches: N, the gradient updates of a global step.
    """
    low = below(rewards, minibatches=minibatches)
    stays = sum(1 for _ in takewhile(bool, reversed(low)))
    return len(low) - stays if stays >= max(2, round(STAYS * len(low))) else None
