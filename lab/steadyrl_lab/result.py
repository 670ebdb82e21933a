"""The record of one finished run, and what a run is measured by."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from steadyrl.collapse import WINDOW, below, collapse_step
from steadyrl.run.logs import Row
from steadyrl_lab.figure import Measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One run of an arm."""

    figure: str
    """Its figure."""
    arm: str
    """Its arm."""
    seed: int
    """Its seed."""
    recipe: dict[str, Any]
    """The recipes of its cold start and of itself; a dump of `figure.Recipes`."""
    minibatches: int
    """N."""
    replay: str
    """`none`, `R2` or `R3`."""
    status: str
    """`finished`, or `stopped`: three updates in a row were not finite."""
    machine: str
    """Where it ran."""
    seconds: float
    """Seconds of its steps, as if each had taken the median: a run may have been paused."""
    steps: dict[str, list[float | None]]
    """Each quantity at every global step; None where it was not finite or not measured."""
    evals: list[Row]
    """Its evaluations."""

    @property
    def rewards(self) -> list[float]:
        """Mean reward of every global step, 0 where there was none."""
        return [value or 0.0 for value in self.steps["reward/mean"]]

    @property
    def collapsed_at(self) -> int | None:
        """Index of the global step at which it collapsed; a run that stopped has, at its last."""
        found = collapse_step(self.rewards, minibatches=self.minibatches)
        return max(0, len(self.rewards) - 1) if found is None and self.status == "stopped" else found

    @property
    def fell_at(self) -> int | None:
        """Index of the first step at which the reward of a run that collapsed was so low, if only for a while."""
        if (at := self.collapsed_at) is None:
            return None
        low = below(self.rewards, minibatches=self.minibatches)
        return low.index(True) if True in low else at

    def course(self, name: str) -> list[float | None]:
        """A quantity averaged over the last `WINDOW` updates, as the reward is; None where it was not measured."""
        values, width = self.steps.get(name, []), max(1, WINDOW // self.minibatches)
        windows = ([v for v in values[max(0, i + 1 - width) : i + 1] if v is not None] for i in range(len(values)))
        return [fmean(window) if window else None for window in windows]

    def accuracy(self, mode: str = "sampled", *, native: bool = False) -> list[tuple[int, float]]:
        """(updates, held-out accuracy) of every evaluation in this mode, in the sampler's precision or unquantised."""
        own = self.evals[0]["precision"]
        rows = [r for r in self.evals if r["mode"] == mode and (r["precision"] == ("native" if native else own))]
        return [(row["step"] * self.minibatches, row["accuracy"]) for row in rows]


def measure(result: Result, what: Measure) -> float:
    """One number for a run; NaN where it logged none.

    `final`, `final_greedy`, `final_native`: held-out accuracy at the end, sampled in the sampler's precision, greedy,
    or sampled unquantised, and 0 for a run that was stopped: it has no last policy. `peak`: the best sampled one.
    `collapsed`: 1 or 0. The others are means over the last quarter of the steps: entropy, k3 of the mismatch as the run
    saw it and without replay, and router disagreement.
    """
    ways: dict[str, Callable[[], float]] = {
        "final": lambda: _last(result, result.accuracy()),
        "final_greedy": lambda: _last(result, result.accuracy("greedy")),
        "final_native": lambda: _last(result, result.accuracy(native=True)),
        "peak": lambda: max(value for _, value in result.accuracy()),
        "collapsed": lambda: float(result.collapsed_at is not None),
        "entropy": lambda: _late(result, "policy/entropy"),
        "kl": lambda: _late(result, "mismatch/k3"),
        "kl_natural": lambda: _natural(result),
        "disagreement": lambda: _late(result, "routes/disagreement"),
    }
    return ways[what]()


def _last(result: Result, accuracy: list[tuple[int, float]]) -> float:
    return 0.0 if result.status == "stopped" else accuracy[-1][1]


def _natural(result: Result) -> float:
    """Without R3 no replay touches π_old. With it, k3 times the ratio of both over the responses computed both ways."""
    if result.replay != "R3":
        return _late(result, "mismatch/k3")
    return _late(result, "mismatch/k3") * _late(result, "replay/k3_natural") / _late(result, "replay/k3_replayed")


def _late(result: Result, name: str) -> float:
    values = result.steps.get(name, [])
    late = [v for v in values[len(values) * 3 // 4 :] if v is not None]
    return fmean(late) if late else math.nan
