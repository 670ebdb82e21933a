"""What a collapse is, decided once: for a run in progress, and for the lab."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import inf

FALLS_BELOW = 2 / 3
"""A run has collapsed once its reward is below this share of its best so far, and stays there to the end."""
WINDOW = 8
"""The reward is averaged over this many gradient updates first."""
STAYS = 1 / 12
"""Share of a run for which it must have stayed there to be told from noise, and two steps at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSoFar:
    """What must be remembered of the rewards of a run to see a collapse."""

    minibatches: int
    """N, the gradient updates of a global step."""
    last: tuple[float, ...] = ()
    """The rewards of the last `WINDOW` updates."""
    best: float = -inf
    """The highest average so far."""
    steps: int = 0
    """Global steps so far."""
    low: int = 0
    """Steps in a row, the last one included, whose average was below FALLS_BELOW of the best."""

    def after(self, reward: float) -> "RewardSoFar":
        """What is known after one more global step with this mean reward."""
        last = (*self.last, reward)[-max(1, WINDOW // self.minibatches) :]
        average = sum(last) / len(last)
        best = max(self.best, average)
        low = self.low + 1 if average < FALLS_BELOW * best and best > 0 else 0  # with a best of 0 nothing is lost
        return RewardSoFar(minibatches=self.minibatches, last=last, best=best, steps=self.steps + 1, low=low)

    @property
    def collapsed(self) -> bool:
        """Whether it has been low for STAYS of the run so far, and two steps at least."""
        return self.low >= max(2, round(STAYS * self.steps))


def below(rewards: Iterable[float], *, minibatches: int) -> list[bool]:
    """Whether, at every global step, the averaged reward is below FALLS_BELOW of its running best.

    Args:
        rewards: mean reward of every global step.
        minibatches: N, the gradient updates of a global step.
    """
    return [known.low > 0 for known in _after_each(rewards, minibatches)[1:]]


def collapse_step(rewards: Iterable[float], *, minibatches: int) -> int | None:
    """Index of the global step at which a run collapsed, or None.

    Args:
        rewards: mean reward of every global step.
        minibatches: N, the gradient updates of a global step.
    """
    end = _after_each(rewards, minibatches)[-1]
    return end.steps - end.low if end.collapsed else None


def _after_each(rewards: Iterable[float], minibatches: int) -> list[RewardSoFar]:
    return list(accumulate(rewards, RewardSoFar.after, initial=RewardSoFar(minibatches=minibatches)))
