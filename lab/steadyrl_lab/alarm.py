"""Which logged quantity announces a collapse, and how long before."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Literal, NamedTuple

from steadyrl.collapse import WINDOW
from steadyrl_lab.result import Result

QUANTILE = 0.99
"""A quantity sounds the alarm beyond this quantile of what it was in runs that did not collapse."""

Way = Literal["rises", "falls"]
SIGNS: tuple[tuple[str, Way], ...] = (
    ("mismatch/k3", "rises"),
    ("mismatch/chi2", "rises"),
    ("mismatch/abs_max", "rises"),
    ("weight/ess", "falls"),
    ("weight/ess_sequences", "falls"),
    ("routes/disagreement", "rises"),
    ("staleness/k3", "rises"),
    ("policy/entropy", "falls"),
    ("policy/entropy", "rises"),
    ("surrogate/value_gap", "rises"),
    ("update/grad_norm", "rises"),
)
"""What may announce a collapse, and by moving which way."""
AROUND = (-2, -1, 0, 1)
"""Windows around the fall of a run that collapsed, of `collapse.WINDOW` updates each, in which quantities are shown."""


def limit(stable: Iterable[Result], name: str, way: Way) -> float | None:
    """The quantile of a quantity over all steps of runs that did not collapse; None where none logged it."""
    values = sorted(v for run in stable for v in run.course(name) if v is not None)
    if not values:
        return None
    share = QUANTILE if way == "rises" else 1.0 - QUANTILE
    return values[round(share * (len(values) - 1))]


def alarm_step(values: Sequence[float | None], beyond: float, way: Way) -> int | None:
    """The first step that is beyond the limit."""
    sounds = (v is not None and (v > beyond if way == "rises" else v < beyond) for v in values)
    return next((step for step, now in enumerate(sounds) if now), None)


class Record(NamedTuple):
    """How a quantity did as an alarm, for every run that collapsed."""

    leads: list[int | None]
    """The updates from the alarm to the fall; None where there was none before it."""
    false: list[float]
    """The share of the figure's stable runs that had sounded by the same update, with as little cause."""


def record(figures: Iterable[Sequence[Result]], name: str, way: Way) -> Record:
    """A quantity as an alarm over the runs of several figures.

    The limit for a run is taken from the stable runs of its figure with *other* seeds, so that no run is judged by what
    it has itself contributed. A figure whose runs all collapsed, or of one seed, has no limit and is left out.
    """
    found = Record([], [])
    for runs in figures:
        logged = [run for run in runs if name in run.steps]
        stable = [run for run in logged if run.fell_at is None]
        seeds = {run.seed for run in logged}
        limits = {seed: limit((run for run in stable if run.seed != seed), name, way) for seed in seeds}
        alarms = [
            (run.fell_at, run.minibatches, alarm_step(run.course(name), beyond, way))
            for run in logged
            if (beyond := limits[run.seed]) is not None
        ]
        quiet = [at for fell, _, at in alarms if fell is None]
        for fell, n, at in alarms:
            if fell is not None:
                found.leads.append((fell - at) * n if at is not None and at < fell else None)
                found.false.extend([fmean(other is not None and other < fell for other in quiet)] if quiet else [])
    return found


def usual(stable: Iterable[Result], name: str) -> float | None:
    """What a quantity is in a run that does not collapse: its mean over the steps, and the median of those."""
    means = [fmean(values) for run in stable if (values := _measured(run, name, 0, len(run.steps["reward/mean"])))]
    return median(means) if means else None


def around(fallen: Iterable[Result], name: str) -> list[float | None]:
    """A quantity in windows of `WINDOW` updates around each fall, by `AROUND`: its mean there, and the median of those.

    Args:
        fallen: the runs that collapsed.
        name: the quantity.
    """
    columns: dict[int, list[float]] = {place: [] for place in AROUND}
    for run in fallen:
        fell, width = run.fell_at, max(1, WINDOW // run.minibatches)
        assert fell is not None
        for place in AROUND:
            if values := _measured(run, name, fell + place * width, fell + (place + 1) * width):
                columns[place].append(fmean(values))
    return [median(means) if means else None for means in columns.values()]


def _measured(run: Result, name: str, begin: int, end: int) -> list[float]:
    return [v for v in run.steps.get(name, [])[max(0, begin) : max(0, end)] if v is not None]
