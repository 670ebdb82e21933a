"""The pictures of a report: what each shows is data, and how it is drawn is one of three functions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from steadyrl.report.drawing import COLOUR, NICE, Scale, scale
from steadyrl.report.reading import MOST_BUCKETS, Bucket, Course, by_mode
from steadyrl.run.logs import Row

_PHASES = ("sampling", "rewards", "logprobs", "update", "sync")
Legend = dict[str, str]  # label → role of the palette


def _curves(axes: Axes, chart: "Chart", course: Course) -> Legend:
    """One curve per metric that the run has; of long ones each step pale, or the range of a bucket of steps."""
    legend: Legend = {}
    seen: list[float] = []
    for name in chart.fields:
        # null is a number that was not finite: a gap. A row without the field did not measure it: no gap.
        column = course.column(name)
        x, y = [place for place, _ in column], [number.mean for _, number in column]
        if finite := [value for value in y if math.isfinite(value)]:
            role = _role(legend)
            legend[name.rpartition("/")[2].replace("_", " ")] = role
            seen += finite
            if course.width > 1:
                held = [number if number.count else None for _, number in column]
                low, high = ([getattr(n, end) if n else math.nan for n in held] for end in ("low", "high"))
                axes.fill_between(x, low, high, color=COLOUR[role], alpha=0.22, lw=0)
                seen += [value for value in (*low, *high) if math.isfinite(value)]
                axes.plot(x, y, color=COLOUR[role], lw=1.2)
                continue
            long = len(x) > 40
            mark = "o" if len(x) <= 25 else ""
            axes.plot(
                x,
                y,
                color=COLOUR[role],
                lw=0.8 if long else 1.6,
                alpha=0.35 if long else 1,
                marker=mark,
                ms=3,
            )
            if long:
                axes.plot(x, _running_mean(y, len(y) // 30), color=COLOUR[role], lw=1.6)
    if seen:
        scale(axes, chart.scale, seen)
    return legend


def _evaluated(axes: Axes, chart: "Chart", rows: Sequence[Row]) -> Legend:
    """A mean and its 95% interval: a curve per mode, precision and set; points if some evaluations left it out."""
    legend: Legend = {}
    every = max(map(len, by_mode(rows).values()), default=0)
    mean, low, high = chart.fields
    for label, whole in by_mode(rows).items():
        series = _thinned([row for row in whole if mean in row])
        if not series:
            continue
        role = _role(legend)
        x = [row["step"] for row in series]
        below, above, value = ([_float(row[name]) for row in series] for name in (low, high, mean))
        if len(whole) == every:
            axes.fill_between(x, below, above, color=COLOUR[role], alpha=0.16, lw=0)
        else:
            axes.vlines(x, below, above, color=COLOUR[role], lw=1.2, alpha=0.6)
        mark = "o" if len(series) <= 60 else ""
        axes.plot(x, value, color=COLOUR[role], lw=1.8 if len(whole) == every else 0.0, marker=mark, ms=3.5)
        legend[label] = role
    if legend:
        scale(axes, chart.scale, [row[mean] or 0.0 for row in rows if mean in row])
    return legend


def _phases(axes: Axes, chart: "Chart", course: Course) -> Legend:
    """Seconds of each phase, stacked up to the whole step."""
    buckets = [bucket for bucket in course.buckets if _mean(bucket, "seconds/step")]
    if not buckets:
        return {}
    parts = {name: [_mean(bucket, f"seconds/{name}") for bucket in buckets] for name in _PHASES}
    spent = [sum(column) for column in zip(*parts.values(), strict=True)]
    whole = [_mean(bucket, "seconds/step") for bucket in buckets]
    parts["other"] = [max(0.0, step - known) for step, known in zip(whole, spent, strict=True)]
    x = [bucket.middle for bucket in buckets]
    if len(x) == 1:  # an area needs two ends
        x, parts = [x[0] - 1, x[0] + 1], {name: values * 2 for name, values in parts.items()}
    legend = {name: f"c{index}" for index, name in enumerate(parts)}
    axes.stackplot(x, *parts.values(), colors=[COLOUR[role] for role in legend.values()], alpha=0.85, lw=0)
    axes.set_xlim(x[0], x[-1])
    return legend


def _mean(bucket: Bucket, name: str) -> float:
    """A metric's mean over the steps of a bucket; 0 where there is none."""
    number = bucket.numbers.get(name)
    return number.mean if number is not None and number.count else 0.0


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _role(legend: Legend) -> str:
    """The colour of the next curve; there are six."""
    return f"c{len(legend) % 6}"


def _thinned(rows: Sequence[Row]) -> Sequence[Row]:
    """At most `MOST_BUCKETS` of many evaluations, evenly, and the last."""
    every = math.ceil(len(rows) / MOST_BUCKETS)
    return [*rows[::every], *rows[-1:]] if every > 1 else rows


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of the finite values at most `reach` places away."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    finite = ([value for value in window if math.isfinite(value)] for window in windows)
    return [sum(window) / len(window) if window else math.nan for window in finite]


@dataclass(frozen=True, slots=True)
class Chart:
    """What one picture shows, and how."""

    title: str
    caption: str
    fields: tuple[str, ...] = ()
    scale: Scale = "linear"
    draw: Callable[[Axes, "Chart", Any], Legend] = _curves


ACCURACY = Chart(
    "Held-out accuracy",
    "Share of right responses to unseen prompts; band: 95% interval.",
    ("accuracy", "low", "high"),
    scale="share",
    draw=_evaluated,
)
HELD_OUT_REWARD = Chart(
    "Held-out reward",
    "Mean over unseen prompts; band: 95% interval.",
    ("reward", "reward_low", "reward_high"),
    draw=_evaluated,
)
REWARD = Chart("Reward", "Mean over the responses of a step.", ("reward/mean",))
ENTROPY = Chart(
    "Entropy, nats",
    "Per token. It falls as a policy grows sure of itself, whether it is right or not.",
    ("policy/entropy",),
)
MISMATCH = Chart(
    "Training–inference KL, nats",
    "D_KL[μ‖π_old] at equal weights, estimated by k3.",
    ("mismatch/k3",),
    "log",
)
CHARTS = (
    REWARD,
    ENTROPY,
    MISMATCH,
    Chart("Policy staleness", "k3 of π_θ/π_old in nats: how far the updates move.", ("staleness/k3",), "log"),
    Chart(
        "Effective sample size",
        "(Σw)²/(n Σw²) of the weights w = π_θ/μ_old over n tokens, and of their products over whole responses.",
        ("weight/ess", "weight/ess_sequences"),
        "share",
    ),
    Chart("Importance weight", "π_θ/μ_old before truncation.", ("weight/max", "weight/mean"), "log"),
    Chart("Clipped tokens", "Masked: outside the objective's trust region.", ("clip/low", "clip/high"), "share"),
    Chart(
        "Router disagreement",
        "(Token, layer) expert sets: engine against trainer.",
        ("routes/disagreement",),
        "share",
    ),
    Chart("Gradient norm", "Before clipping, mean over the updates of a step.", ("update/grad_norm",)),
    Chart("Response length", "Mean tokens per response.", ("response/length",)),
    Chart(
        "Wasted responses",
        "No gradient from uniform groups; cut at the limit.",
        ("reward/uniform_groups", "response/truncated"),
        "share",
    ),
    Chart("Time per step", "Seconds, by phase.", draw=_phases),
)
COLD_START = (
    Chart("Cold start: loss", "Nats per token of the worked solutions.", ("loss",), "log"),
    Chart("Cold start: accuracy", "Sampled, on held-out prompts.", ("accuracy",), "share"),
)


def draw(axes: Axes, chart: Chart, rows: Any) -> Legend:
    """Draw a chart of rows; empty where they have no number for it."""
    legend = chart.draw(axes, chart, rows)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=NICE, integer=True))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 1, last + 1)
    return legend
