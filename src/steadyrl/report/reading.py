"""Reads the files of a run directory for its report. Long files are summarised; of others only the end is read.

The memory of a report does not grow with the run. Each curve keeps at most `MOST_BUCKETS` points. The ledger, the
responses and the samples keep one or two steps.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from steadyrl.errors import UserError
from steadyrl.measure.trouble import Trouble, Watch
from steadyrl.recipe import Recipe, load
from steadyrl.renamed import translate_row
from steadyrl.run.logs import Row, last_step_rows, read_jsonl, stream_jsonl

MOST_BUCKETS = 400
"""Points of a curve: about as many as a picture has columns."""


class RunError(UserError):
    """A directory that is not a run. The message names what is missing."""


@dataclass(slots=True)
class BucketMetric:
    """A metric over the steps of a bucket that measured it; numbers that were not finite do not count."""

    total: float = 0.0
    """Their sum."""
    count: int = 0
    """How many."""
    low: float = math.inf
    """The lowest."""
    high: float = -math.inf
    """The highest."""

    @property
    def mean(self) -> float:
        """Their mean; NaN, which a curve shows as a gap, if there are none."""
        return self.total / self.count if self.count else math.nan

    def add(self, other: "BucketMetric") -> None:
        """Take those of another bucket in."""
        self.total += other.total
        self.count += other.count
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)


@dataclass(slots=True)
class Bucket:
    """Some steps in a row."""

    first: int
    """The first of them."""
    last: int
    """The last."""
    numbers: dict[str, BucketMetric] = field(default_factory=dict)
    """Each metric that one of them measured."""

    @property
    def middle(self) -> float:
        """Where a curve shows it."""
        return (self.first + self.last) / 2


@dataclass(slots=True)
class Course:
    """The rows of a file with one line per step, in buckets: of one step each, until there are too many."""

    rows: int = 0
    """How many rows the file has."""
    width: int = 1
    """Rows of a full bucket."""
    buckets: list[Bucket] = field(default_factory=list)
    """In the order of the steps."""
    names: set[str] = field(default_factory=set)
    """Every metric that a row has."""

    def add(self, row: Row) -> None:
        """Take the next row in."""
        if self.rows % self.width == 0:
            if len(self.buckets) == MOST_BUCKETS:
                self._halve()
            self.buckets.append(Bucket(row["step"], row["step"]))
        bucket = self.buckets[-1]
        bucket.last = row["step"]
        for name, value in row.items():
            number = bucket.numbers.setdefault(name, BucketMetric())
            if isinstance(value, int | float) and math.isfinite(value):
                number.total += value
                number.count += 1
                number.low, number.high = min(number.low, value), max(number.high, value)
        self.names |= row.keys()
        self.rows += 1

    def total(self, name: str) -> float:
        """Sum of a metric over all steps."""
        return math.fsum(bucket.numbers[name].total for bucket in self.buckets if name in bucket.numbers)

    def column(self, name: str) -> list[tuple[float, BucketMetric]]:
        """The buckets that have a metric: where each stands, and its number."""
        return [(bucket.middle, bucket.numbers[name]) for bucket in self.buckets if name in bucket.numbers]

    def _halve(self) -> None:
        """Merge the buckets in pairs."""
        for left, right in zip(self.buckets[::2], self.buckets[1::2], strict=True):
            left.last = right.last
            for name, number in right.numbers.items():
                left.numbers.setdefault(name, BucketMetric()).add(number)
        self.buckets = self.buckets[::2]
        self.width *= 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a report shows of a run."""

    name: str
    """Name of its directory."""
    recipe: Recipe
    """Its recipe."""
    steps: Course
    """`metrics.jsonl`."""
    cold_start: Course
    """`cold_start.jsonl`."""
    ledger: list[Row]
    """`ledger.jsonl`: the last step."""
    evals: list[Row]
    """`eval.jsonl`."""
    samples: dict[int, list[Row]]
    """`samples.jsonl`: the first and the last evaluation, by step."""
    rollouts: list[Row]
    """`rollouts.jsonl`: the last step that is in it."""
    trouble: list[Trouble]
    """What trouble its steps had."""


def read_run(run: Path) -> Reading:
    """Read a run directory; only the recipe must be there.

    Raises:
        RunError: there is no recipe.
        ValueError: the recipe or a line of a file is malformed.
    """
    if not (run / "recipe.json").is_file():
        raise RunError(f"{run} is not a run directory: it has no recipe.json; give the folder that training wrote")
    recipe = load(run / "recipe.json")
    steps, cold_start, watch = Course(), Course(), Watch(minibatches=recipe.update.minibatches)
    for row in stream_jsonl(run / "metrics.jsonl"):
        steps.add(translate_row(row))
        watch.see(row)
    for row in stream_jsonl(run / "cold_start.jsonl"):
        cold_start.add(row)
    evals, samples = run / "eval.jsonl", run / "samples.jsonl"
    ends = (_first_step_rows(samples), last_step_rows(samples))
    return Reading(
        name=run.resolve().name,
        recipe=recipe,
        steps=steps,
        cold_start=cold_start,
        ledger=[translate_row(row) for row in last_step_rows(run / "ledger.jsonl")],
        evals=read_jsonl(evals) if evals.exists() else [],
        samples={rows[0]["step"]: rows for rows in ends if rows},
        rollouts=last_step_rows(run / "rollouts.jsonl"),
        trouble=watch.found,
    )


def _first_step_rows(path: Path) -> list[Row]:
    rows = stream_jsonl(path)
    first = next(rows, None)
    return [first, *takewhile(lambda row: row["step"] == first["step"], rows)] if first else []


def by_mode(evals: Iterable[Row]) -> dict[str, list[Row]]:
    """Evaluations by mode, precision and set, such as `sampled, fp8`; held-out problems and sampled ones first."""
    series: dict[str, list[Row]] = {}
    for row in sorted(evals, key=lambda row: (_set(row) != "held_out", row["mode"] != "sampled")):
        label = f"{row['mode']}, {row['precision']}" + ("" if _set(row) == "held_out" else f", {_set(row)}")
        series.setdefault(label, []).append(row)
    return series


def _set(row: Row) -> str:
    return row.get("set", "held_out")


def is_partial(row: Row) -> bool:
    """Whether the mean reward of an evaluation says something that its accuracy does not."""
    return row.get("reward") is not None and row["reward"] != row["accuracy"]


def last_ledger(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Of one step, the factors' rows by split and bucket; a split with all tokens in one bucket says nothing.

    The whole comes first.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["split"], row["bucket"]), {})[row["factor"]] = row
    sizes = Counter(split for split, _ in found)  # in the order in which splits were first met
    shown = [split for split, size in sizes.items() if split == "all" or size > 1]
    return {key: found[key] for split in shown for key in found if key[0] == split}


def by_group(rollouts: Iterable[Row]) -> dict[int, list[Row]]:
    """The responses of a step by the problem that they answer."""
    groups: dict[int, list[Row]] = {}
    for row in rollouts:
        groups.setdefault(row["problem"], []).append(row)
    return groups
