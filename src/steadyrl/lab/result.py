"""The record of one finished run: small, in the repository, and all that the report is made from."""

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from steadyrl.config import RecipeError
from steadyrl.errors import UserError
from steadyrl.lab.collapse import WINDOW, below, collapse_step
from steadyrl.lab.figure import Figure, Measure, fingerprint, load_figure
from steadyrl.run.logs import Row, read_jsonl, write_atomically

QUANTITIES = (
    "reward/mean",
    "response/length",
    "policy/entropy",
    "mismatch/k1",
    "mismatch/k3",
    "mismatch/chi2",
    "mismatch/ess",
    "mismatch/abs_max",
    "staleness/k3",
    "weight/ess",
    "weight/ess_sequences",
    "weight/max",
    "clip/low",
    "clip/high",
    "routes/disagreement",
    "replay/k3_natural",
    "replay/k3_replayed",
    "surrogate/value_gap",
    "surrogate/delta",
    "surrogate/delta_bound",
    "update/grad_norm",
    "update/skipped",
    "seconds/step",
)
"""The per-step metrics that are kept, to five digits."""


class ResultError(UserError):
    """A stored result that does not fit its figure. The message names the file and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One run of an arm."""

    figure: str
    """Its figure."""
    arm: str
    """Its arm."""
    seed: int
    """Its seed."""
    fingerprint: str
    """Of the recipes; see `figure.fingerprint`."""
    minibatches: int
    """N."""
    replay: str
    """`none`, `R2` or `R3`."""
    status: str
    """`finished`, or `stopped`: three updates in a row were not finite."""
    machine: str
    """Where it ran."""
    steps: dict[str, list[float | None]]
    """Each quantity at every global step; None where it was not finite or not measured."""
    evals: list[Row]
    """Its evaluations."""

    @property
    def seconds(self) -> float:
        """Seconds of its steps, as if each had taken the median: a run may have been paused."""
        taken = [value for value in self.steps["seconds/step"] if value is not None]
        return median(taken) * len(taken) if taken else 0.0

    @property
    def _rewards(self) -> list[float]:
        return [value or 0.0 for value in self.steps["reward/mean"]]

    @property
    def collapsed_at(self) -> int | None:
        """Index of the global step at which it collapsed; a run that stopped has, at its last."""
        found = collapse_step(self._rewards, minibatches=self.minibatches)
        return max(0, len(self._rewards) - 1) if found is None and self.status == "stopped" else found

    @property
    def fell_at(self) -> int | None:
        """Index of the first step at which the reward of a run that collapsed was so low, if only for a while."""
        if (at := self.collapsed_at) is None:
            return None
        low = below(self._rewards, minibatches=self.minibatches)
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


def collect(run: Path, **facts: Any) -> Result:
    """Read a run directory down to what is kept; `facts` are the other fields."""
    rows = read_jsonl(run / "metrics.jsonl")
    steps = {name: [_short(row.get(name)) for row in rows] for name in QUANTITIES}
    kept = ("step", "mode", "precision", "accuracy", "low", "high")
    looked = [row for row in read_jsonl(run / "eval.jsonl") if row.get("set", "held_out") == "held_out"]
    evals: list[Row] = [{name: row[name] for name in kept} for row in looked]
    machine = f"{platform.machine()}, torch {torch.__version__}"
    always = ("reward/mean", "seconds/step")  # also of a run that was stopped in its first step
    measured = {name: values for name, values in steps.items() if name in always or any(v is not None for v in values)}
    return Result(machine=machine, steps=measured, evals=evals, **facts)


def _short(value: Any) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def result_path(lab: Path, figure: str, arm: str, seed: int) -> Path:
    """Where the record of a run lies."""
    return lab / "results" / figure / f"{arm}-{seed}.json"


def store(lab: Path, result: Result) -> None:
    """Write a record, atomically."""
    path = result_path(lab, result.figure, result.arm, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(asdict(result), allow_nan=False) + "\n")


def load_result(lab: Path, figure: str, arm: str, seed: int) -> Result | None:
    """The record of a run, or None where it has not finished.

    Raises:
        ResultError: the file is damaged.
    """
    path = result_path(lab, figure, arm, seed)
    if not path.exists():
        return None
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ResultError(f"{path} is damaged: {error}; delete it, and the run is made again") from error


def results_of(lab: Path, figure: Figure) -> dict[str, list[Result]]:
    """The finished runs of a figure by arm, in the order of the seeds, and those of other figures that its claims name.

    Raises:
        RecipeError: a claim names a figure or an arm that does not exist.
        ResultError: a run is damaged, or was made with another recipe than the figure now has.
    """
    found = {arm: _runs(lab, figure, arm) for arm in figure.arms}
    for name in {arm for claim in figure.claims for arm in claim.arms if "/" in arm}:
        other, arm = name.split("/", 1)
        elsewhere = load_figure(lab, other)
        if arm not in elsewhere.arms:
            raise RecipeError(f"{figure.name} names {name!r}; the arms of {other} are {sorted(elsewhere.arms)}")
        found[name] = _runs(lab, elsewhere, arm)
    return found


def _runs(lab: Path, figure: Figure, arm: str) -> list[Result]:
    loaded = [(seed, load_result(lab, figure.name, arm, seed)) for seed in figure.seeds]
    for seed, run in loaded:
        if run is not None:
            require_same(lab, figure, run, fingerprint(lab, figure, arm, seed))
    return [run for _, run in loaded if run is not None]


def require_same(lab: Path, figure: Figure, run: Result, mark: str) -> None:
    """Refuse a stored run that is not what its figure asks for now.

    Raises:
        ResultError: it was made with another recipe.
    """
    if run.fingerprint != mark:
        raise ResultError(
            f"{result_path(lab, figure.name, run.arm, run.seed)} was made with another recipe. A change of the regime "
            f"reruns all arms: delete {lab / 'results' / figure.name} and {lab / 'runs' / figure.name}"
        )
