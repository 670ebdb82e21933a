"""Which logged quantity announces a collapse, and how long before."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple

from steadyrl.lab.collapse import WINDOW
from steadyrl.lab.result import Result

QUANTILE = 0.99
"""A quantity sounds the alarm beyond this quantile of what it was in runs that did not collapse."""

Way = Literal["rises", "falls"]
SIGNS: tuple[tuple[str, Way], ...] = (
    ("mismatch/k3", "rises"),
    ("mismatch/chi2", "rises"),
    ("mismatch/abs_max", "rises"),
    ("weight/ess", "falls"),
    ("routes/disagreement", "rises"),
    ("staleness/k3", "rises"),
    ("policy/entropy", "falls"),
    ("policy/entropy", "rises"),
    ("surrogate/value_gap", "rises"),
    ("update/grad_norm", "rises"),
)
"""What may announce a collapse, and by moving which way."""
AROUND = (-2, -1, 0, 1)
"""Windows around a collapse, of `collapse.WINDOW` updates each, in which quantities are shown."""


def limit(stable: Iterable[Result], name: str, way: Way) -> float | None:
    """The quantile of a quantity over all steps of runs that did not collapse; None where none logged it."""
    values = sorted(v for run in stable for v in run.steps.get(name, ()) if v is not None)
    if not values:
        return None
    share = QUANTILE if way == "rises" else 1.0 - QUANTILE
    return values[round(share * (len(values) - 1))]


def alarm_step(values: Sequence[float | None], beyond: float, way: Way) -> int | None:
    """The step at which an alarm is known: the second of two in a row beyond the limit.

    A step at which the quantity was not measured, or not finite, neither sounds nor clears an alarm.
    """
    before = False
    for step, value in enumerate(values):
        if value is None:
            continue
        now = value > beyond if way == "rises" else value < beyond
        if now and before:
            return step
        before = now
    return None


class Record(NamedTuple):
    """How a quantity did as an alarm."""

    leads: list[int | None]
    """For each collapse, the updates from the alarm to it; None where no alarm was known before."""
    false: list[bool]
    """For each stable run, whether it sounded."""


def record(figures: Iterable[Sequence[Result]], name: str, way: Way) -> Record:
    """A quantity as an alarm over the runs of several figures.

    The limit for a run is taken from the stable runs of its figure with *other* seeds, so that no run is judged by what
    it has itself contributed. A figure whose runs all collapsed, or of one seed, has no limit and is left out.
    """
    found = Record([], [])
    for runs in figures:
        logged = [run for run in runs if name in run.steps]
        for seed in {run.seed for run in logged}:
            others = [run for run in logged if run.seed != seed and run.collapsed_at is None]
            if (beyond := limit(others, name, way)) is None:
                continue
            for run in (run for run in logged if run.seed == seed):
                at, fallen = alarm_step(run.steps[name], beyond, way), run.collapsed_at
                if fallen is None:
                    found.false.append(at is not None)
                else:
                    found.leads.append((fallen - at) * run.minibatches if at is not None and at < fallen else None)
    return found


def around(runs: Iterable[Result], name: str) -> list[float | None]:
    """A quantity in windows of `WINDOW` updates around each collapse: the median over the runs, by `AROUND`."""
    columns: dict[int, list[float]] = {place: [] for place in AROUND}
    for run in runs:
        at, width = run.collapsed_at, max(1, WINDOW // run.minibatches)
        if at is None:
            continue
        for place in AROUND:
            steps = run.steps.get(name, [])[max(0, at + place * width) : max(0, at + (place + 1) * width)]
            columns[place] += [v for v in steps if v is not None]
    return [median(values) if values else None for values in columns.values()]
