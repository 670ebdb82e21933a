"""What a collapse is, decided once, and which logged quantity announced it."""

import math
from collections.abc import Mapping, Sequence

FALLS_BELOW = 2 / 3
"""A run has collapsed once its reward is below this share of its best so far, and stays there to the end."""
WINDOW = 8
"""The reward is averaged over this many gradient updates first."""
STAYS = 1 / 12
"""Share of a run for which it must have stayed there to be told from noise."""
ALARM = 0.99
"""A quantity sounds the alarm beyond this quantile of what it was in the runs that did not collapse."""

RISES = (
    "mismatch/k3",
    "replay/k3_natural",
    "mismatch/chi2",
    "mismatch/abs_max",
    "routes/disagreement",
    "staleness/k3",
    "surrogate/value_gap",
    "update/grad_norm",
)
"""Quantities whose rise may announce a collapse."""
FALLS = ("policy/entropy", "weight/ess")
"""Quantities whose fall may."""


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values, fewer at the beginning."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def collapse_step(rewards: Sequence[float], *, minibatches: int) -> int | None:
    """Index of the global step at which a run collapsed, or None.

    The smoothed reward is below FALLS_BELOW of its running best from that step to the last, for STAYS of the run.

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
    return last_good + 1 if fallen >= max(1, round(STAYS * len(smooth))) else None


def limits(stable: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, float]:
    """The alarm's limit for each quantity that runs without a collapse have logged."""
    found = {}
    for name in (*RISES, *FALLS):
        values = sorted(v for run in stable for v in run.get(name, ()) if v is not None and math.isfinite(v))
        if values:
            share = ALARM if name in RISES else 1.0 - ALARM
            found[name] = values[round(share * (len(values) - 1))]
    return found


def alarm_step(values: Sequence[float | None], limit: float, *, rises: bool) -> int | None:
    """The first of two steps in a row that are beyond the limit; a value that is not finite is beyond."""

    def beyond(value: float | None) -> bool:
        return value is None or not math.isfinite(value) or (value > limit if rises else value < limit)

    return next((i for i in range(len(values) - 1) if beyond(values[i]) and beyond(values[i + 1])), None)
