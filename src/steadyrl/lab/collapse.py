"""What a collapse is, decided once."""

from collections.abc import Sequence

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


def collapse_step(rewards: Sequence[float], *, minibatches: int) -> int | None:
    """Index of the global step at which a run collapsed, or None.

    The smoothed reward is below FALLS_BELOW of its running best from that step to the last, for STAYS of the run
    and two steps at least.

    Args:
        rewards: mean reward of every global step.
        minibatches: N, the gradient updates of a global step.
    """
    smooth = smoothed(rewards, max(1, WINDOW // minibatches))
    best, last_good = 0.0, -1
    for step, value in enumerate(smooth):
        best = max(best, value)
        if value >= FALLS_BELOW * best:
            last_good = step
    fallen = len(smooth) - 1 - last_good
    return last_good + 1 if fallen >= max(2, round(STAYS * len(smooth))) else None
