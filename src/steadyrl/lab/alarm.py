"""Which logged quantity announces a collapse, and how long before."""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
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


def course(run: Result, name: str) -> list[float | None]:
    """A quantity averaged over the last `WINDOW` updates, as the reward is; None where it was not measured."""
    values, width = run.steps.get(name, []), max(1, WINDOW // run.minibatches)
    windows = ([v for v in values[max(0, i + 1 - width) : i + 1] if v is not None] for i in range(len(values)))
    return [fmean(window) if window else None for window in windows]


def limit(stable: Iterable[Result], name: str, way: Way) -> float | None:
    """The quantile of a quantity over all steps of runs that did not collapse; None where none logged it."""
    values = sorted(v for run in stable for v in course(run, name) if v is not None)
    if not values:
        return None
    share = QUANTILE if way == "rises" else 1.0 - QUANTILE
    return values[round(share * (len(values) - 1))]


def alarm_step(values: Sequence[float | None], beyond: float, way: Way) -> int | None:
    """The first step that is beyond the limit."""
    sounds = (v is not None and (v > beyond if way == "rises" else v < beyond) for v in values)
    return next((step for step, now in enumerate(sounds) if now), None)


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
                at, fallen = alarm_step(course(run, name), beyond, way), run.collapsed_at
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
