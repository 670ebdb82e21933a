"""The report of a run: one HTML file that opens offline, on a light or a dark screen, also in mid-run."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from steadyrl.drawing import COLOUR, LIGHT, NICE, PALETTE, STYLE, Scale, scale, svg, white_card
from steadyrl.jsonl import Row, write_atomically
from steadyrl.metrics import METRICS
from steadyrl.reading import (
    MOST_BUCKETS,
    Bucket,
    Course,
    Reading,
    by_group,
    by_mode,
    last_ledger,
    read_run,
)
from steadyrl.terminal import escape as spelled
from steadyrl.terminal import is_visible, visible
from steadyrl.trouble import unreached

_GROUPS, _RESPONSES, _FAILED = 3, 8, 4  # that the page shows
_LISTED = 16  # evaluations of a kind that the page lists: the first and the last
_PHASES = ("sampling", "rewards", "logprobs", "update", "sync")
Legend = dict[str, str]  # label → role of the palette


@dataclass(frozen=True, slots=True)
class Card:
    """A picture and its words."""

    title: str
    caption: str
    legend: Legend
    svg: Markup


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
    """A mean and its 95% interval: a curve per mode, precision and set; points where it was not always looked at."""
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


def write_report(run: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises:
        RunError: the directory is not a run.
        ValueError: a file of it is malformed; the message names the file and the line.
    """
    read = read_run(run)
    source = resources.files("steadyrl").joinpath("report.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"maths": _maths, "percent": _percent, "amount": _amount, "duration": _duration}
    environment.filters |= {"nats": _nats, "number": _number}
    series = by_mode(read.evals)
    whole, failed = _trained_on(read)
    page = environment.from_string(source).render(
        run=read,
        title=visible(read.name),
        recipe=read.recipe,
        cards=list(_cards(read)),
        series=series,
        listed={
            label: rows if len(rows) <= _LISTED else [rows[0], *rows[1 - _LISTED :]] for label, rows in series.items()
        },
        several=sorted({name for row in read.evals for name in row if "@" in name}, key=_by_size),
        partial=_partial(read.evals),
        unreached=unreached(_last_evaluation(read.evals), correct_at=read.recipe.task.correct_at),
        last=read.steps.buckets[-1].last if read.steps.buckets else 0,
        shortened_list=any(len(rows) > _LISTED for rows in series.values()),
        whole=whole[:_GROUPS],
        failed=failed[:_FAILED],
        ledger=last_ledger(read.ledger),
        total={metric.name: read.steps.total(metric.name) for metric in METRICS},
        resolved=dict(_flat(read.recipe.model_dump(mode="json"))),
        glossary=[metric for metric in METRICS if _logged(metric.name, read.steps.names)],
        palette=PALETTE,
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path


def figure_overview(run: Path, path: Path) -> None:
    """Write one wide SVG for a README: held-out accuracy, reward, mismatch and entropy, on a white card.

    Raises:
        RunError: `run` is not a run directory.
    """
    read = read_run(run)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "overview"}):
        figure = Figure(figsize=(13.0, 3.3))
        white_card(figure)
        for index, chart in enumerate((ACCURACY, REWARD, MISMATCH, ENTROPY)):
            axes = figure.add_axes((0.043 + index * 0.2445, 0.17, 0.202, 0.63))
            legend = _draw(axes, chart, read.evals if chart is ACCURACY else read.steps)
            axes.set_title(chart.title, loc="left", fontsize=11.5, fontweight="bold", pad=10)
            axes.set_xlabel("global steps", fontsize=9)
            if len(legend) > 1:
                lines = [Line2D([], [], color=COLOUR[role]) for role in legend.values()]
                axes.legend(lines, list(legend), frameon=False, fontsize=8.5)
        write_atomically(path, svg(figure, LIGHT))


def _cards(run: Reading) -> Iterator[Card]:
    """Every picture for which the run has numbers."""
    sources: list[tuple[Chart, Any]] = [
        (ACCURACY, run.evals),
        *([(HELD_OUT_REWARD, run.evals)] if _partial(run.evals) else []),
        *((chart, run.steps) for chart in CHARTS),
        *((chart, run.cold_start) for chart in COLD_START),
    ]
    for chart, rows in sources:
        # the salt makes the ids of one picture differ from those of every other on the page
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.title}):
            figure = Figure(figsize=(4.5, 2.3))
            axes = figure.add_axes((0.105, 0.125, 0.875, 0.835))
            if legend := _draw(axes, chart, rows):
                drawn = svg(figure, {role: f"var(--{role})" for role in PALETTE})
                yield Card(chart.title, chart.caption, legend, Markup(drawn))


def _trained_on(run: Reading) -> tuple[list[list[Row]], list[Row]]:
    """Whole groups of the last step in `rollouts.jsonl`, the best responses first, and others whose verifier failed."""
    groups, size = by_group(run.rollouts), run.recipe.rollout.responses
    best = [sorted(rows, key=lambda row: -(row["advantage"] or 0.0)) for rows in groups.values() if len(rows) >= size]
    return [rows[:_RESPONSES] for rows in best], [row for rows in groups.values() if len(rows) < size for row in rows]


def _partial(evals: Sequence[Row]) -> bool:
    """Whether the mean reward says something that the accuracy does not."""
    return any(row.get("reward") is not None and row["reward"] != row["accuracy"] for row in evals)


def _last_evaluation(evals: Sequence[Row]) -> list[Row]:
    return [row for row in evals if row["step"] == evals[-1]["step"]]


def _by_size(name: str) -> tuple[str, int]:
    """`pass@16` behind `pass@2`, and both behind `maj@16`."""
    kind, _, size = name.partition("@")
    return kind, int(size)


def _draw(axes: Axes, chart: Chart, rows: Any) -> Legend:
    legend = chart.draw(axes, chart, rows)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=NICE, integer=True))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 1, last + 1)
    return legend


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of the finite values at most `reach` places away."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    finite = ([value for value in window if math.isfinite(value)] for window in windows)
    return [sum(window) / len(window) if window else math.nan for window in finite]


def _logged(name: str, names: set[str]) -> bool:
    """Whether a metric was measured, or one of those whose name has a number or a user's word for `<…>`."""
    before, open_ended, _ = name.partition("<")
    if not open_ended:
        return name in names
    known = {metric.name for metric in METRICS}
    return any(other.startswith(before) for other in names - known)


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of the recipe with their dotted names, as the flags spell them."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _shown(value: Any) -> Any:
    """Text as it may be shown: characters that cannot be seen, or that deceive, as marked escapes."""
    if not isinstance(value, str) or isinstance(value, Markup) or visible(value, lines=True) == value:
        return value
    parts = (c if is_visible(c, lines=True) else Markup('<i class="unseen">{}</i>').format(spelled(c)) for c in value)
    return Markup("").join(parts)


def _maths(text: str) -> Markup:
    """Subscripts (`π_old`, `E_{…}`) and `code` in HTML."""
    html = re.sub(r"_\{(.*?)\}|_([A-Za-zθμ]+)", r"<sub>\1\2</sub>", str(escape(text)))
    return Markup(re.sub(r"`(.*?)`", r"<code>\1</code>", html))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value else "0"


def _amount(count: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
