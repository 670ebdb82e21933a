"""The report of a run: one HTML file that opens offline, on a light or a dark screen, also in mid-run."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from steadyrl.config import Recipe, load
from steadyrl.drawing import COLOUR, LIGHT, NICE, PALETTE, STYLE, Scale, scale, svg, white_card
from steadyrl.errors import UserError
from steadyrl.metrics import METRICS, Row, read_jsonl, write_atomically

_PHASES = ("sampling", "rewards", "scoring", "update", "sync")
Legend = dict[str, str]  # label → role of the palette


class RunError(UserError):
    """A directory that is not a run. The message names what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The files of a run directory, read."""

    name: str
    recipe: Recipe
    steps: list[Row]
    ledger: list[Row]
    evals: list[Row]
    cold_start: list[Row]
    samples: list[Row]


@dataclass(frozen=True, slots=True)
class Card:
    """A picture and its words."""

    title: str
    caption: str
    legend: Legend
    svg: Markup


def _curves(axes: Axes, chart: "Chart", rows: Sequence[Row]) -> Legend:
    """One curve per field that the rows hold; of long ones each step pale, and a running mean on top."""
    legend: Legend = {}
    seen: list[float] = []
    for name in chart.fields:
        # null is a number that was not finite: a gap. A row without the field did not measure it: no gap.
        x, y = _column(rows, name)
        if finite := [value for value in y if math.isfinite(value)]:
            role = f"c{len(legend)}"
            legend[name.rpartition("/")[2].replace("_", " ")] = role
            seen += finite
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


def _accuracy(axes: Axes, chart: "Chart", rows: Sequence[Row]) -> Legend:
    """Accuracy and its 95% interval: a curve per mode and precision, points where it was not looked at in between."""
    legend: Legend = {}
    every = max(map(len, by_mode(rows).values()), default=0)
    for label, series in by_mode(rows).items():
        role = f"c{len(legend)}"
        (x, low), (_, high), (_, mean) = (_column(series, name) for name in ("low", "high", "accuracy"))
        if len(series) == every:
            axes.fill_between(x, low, high, color=COLOUR[role], alpha=0.16, lw=0)
        else:
            axes.vlines(x, low, high, color=COLOUR[role], lw=1.2, alpha=0.6)
        axes.plot(x, mean, color=COLOUR[role], lw=1.8 if len(series) == every else 0.0, marker="o", ms=3.5)
        legend[label] = role
    if legend:
        scale(axes, chart.scale, [row["accuracy"] or 0.0 for row in rows])
    return legend


def _phases(axes: Axes, chart: "Chart", rows: Sequence[Row]) -> Legend:
    """Seconds of each phase, stacked up to the whole step."""
    rows = [row for row in rows if row.get("seconds/step")]
    if not rows:
        return {}
    parts = {name: [row.get(f"seconds/{name}") or 0.0 for row in rows] for name in _PHASES}
    spent = [sum(column) for column in zip(*parts.values(), strict=True)]
    parts["other"] = [max(0.0, row["seconds/step"] - known) for row, known in zip(rows, spent, strict=True)]
    x = [row["step"] for row in rows]
    if len(x) == 1:  # an area needs two ends
        x, parts = [x[0] - 1, x[0] + 1], {name: values * 2 for name, values in parts.items()}
    legend = {name: f"c{index}" for index, name in enumerate(parts)}
    axes.stackplot(x, *parts.values(), colors=[COLOUR[role] for role in legend.values()], alpha=0.85, lw=0)
    axes.set_xlim(x[0], x[-1])
    return legend


@dataclass(frozen=True, slots=True)
class Chart:
    """What one picture shows, and how."""

    title: str
    caption: str
    fields: tuple[str, ...] = ()
    scale: Scale = "linear"
    draw: Callable[[Axes, "Chart", Sequence[Row]], Legend] = _curves


ACCURACY = Chart(
    "Held-out accuracy",
    "Reward ≥ 1 on unseen prompts; band: 95% interval.",
    scale="share",
    draw=_accuracy,
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
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"maths": _maths, "percent": _percent, "amount": _amount, "duration": _duration}
    environment.filters["nats"] = _nats
    page = environment.from_string(source).render(
        run=read,
        recipe=read.recipe,
        cards=list(_cards(read)),
        series=by_mode(read.evals),
        ledger=last_ledger(read.ledger),
        total={metric.name: _total(read.steps, metric.name) for metric in METRICS},
        samples={step: [row for row in read.samples if row["step"] == step] for step in _ends(read.samples)},
        resolved=dict(_flat(read.recipe.model_dump(mode="json"))),
        glossary=[metric for metric in METRICS if any(_logged(metric.name, row) for row in read.steps)],
        palette=PALETTE,
    )
    path = run / "report.html"
    write_atomically(path, page)
    return path


def figure_overview(run: Path, path: Path) -> None:
    """Write one wide SVG for a README: held-out accuracy, reward, discrepancy and entropy, on a white card.

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


def read_run(run: Path) -> Run:
    """Read a run directory; only the recipe must be there.

    Raises:
        RunError: there is no recipe.
        ValueError: the recipe or a line of a file is malformed.
    """
    if not (run / "recipe.json").is_file():
        raise RunError(f"{run} is not a run directory: it has no recipe.json; give the folder that training wrote")
    names = {"steps": "metrics", "ledger": "ledger", "evals": "eval", "cold_start": "cold_start", "samples": "samples"}
    paths = {field: run / f"{name}.jsonl" for field, name in names.items()}
    rows = {field: read_jsonl(path) if path.exists() else [] for field, path in paths.items()}
    return Run(name=run.resolve().name, recipe=load(run / "recipe.json"), **rows)


def by_mode(evals: Iterable[Row]) -> dict[str, list[Row]]:
    """Evaluations by mode and precision, such as `sampled, fp8`; sampled ones first."""
    series: dict[str, list[Row]] = {}
    for row in sorted(evals, key=lambda row: row["mode"] != "sampled"):
        series.setdefault(f"{row['mode']}, {row['precision']}", []).append(row)
    return series


def last_ledger(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Of the last step, the factors' rows by split and bucket; a split whose tokens all lie in one bucket says nothing.

    The whole comes first.
    """
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["step"] == rows[-1]["step"]:
            found.setdefault((row["split"], row["bucket"]), {})[row["factor"]] = row
    sizes = Counter(split for split, _ in found)  # in the order in which splits were first met
    shown = [split for split, size in sizes.items() if split == "all" or size > 1]
    return {key: found[key] for split in shown for key in found if key[0] == split}


def _cards(run: Run) -> Iterator[Card]:
    """Every picture for which the run has numbers."""
    sources = [
        (ACCURACY, run.evals),
        *((c, run.steps) for c in CHARTS),
        *((c, run.cold_start) for c in COLD_START),
    ]
    for chart, rows in sources:
        # the salt makes the ids of one picture differ from those of every other on the page
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.title}):
            figure = Figure(figsize=(4.5, 2.3))
            axes = figure.add_axes((0.105, 0.125, 0.875, 0.835))
            if legend := _draw(axes, chart, rows):
                drawn = svg(figure, {role: f"var(--{role})" for role in PALETTE})
                yield Card(chart.title, chart.caption, legend, Markup(drawn))


def _draw(axes: Axes, chart: Chart, rows: Sequence[Row]) -> Legend:
    legend = chart.draw(axes, chart, rows)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=NICE, integer=True))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 1, last + 1)
    return legend


def _column(rows: Iterable[Row], name: str) -> tuple[list[int], list[float]]:
    held = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in held], [math.nan if value is None else float(value) for _, value in held]


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of the finite values at most `reach` places away."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    finite = ([value for value in window if math.isfinite(value)] for window in windows)
    return [sum(window) / len(window) if window else math.nan for window in finite]


def _logged(name: str, row: Row) -> bool:
    """Whether a row has a metric, or one of those whose name has a number for `<n>`."""
    before, number, _ = name.partition("<n>")
    return any(key.startswith(before) for key in row) if number else name in row


def _total(rows: Iterable[Row], name: str) -> float:
    return sum(value for value in _column(rows, name)[1] if math.isfinite(value))


def _ends(rows: Sequence[Row]) -> list[int]:
    """The first and the last step of the rows, or the only one."""
    return sorted({row["step"] for row in (rows[0], rows[-1])}) if rows else []


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of the recipe with their dotted names, as the flags spell them."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, tree


def _maths(text: str) -> Markup:
    """Subscripts (`π_old`, `E_{…}`) and `code` in HTML."""
    html = re.sub(r"_\{(.*?)\}|_([A-Za-zθμ]+)", r"<sub>\1\2</sub>", str(escape(text)))
    return Markup(re.sub(r"`(.*?)`", r"<code>\1</code>", html))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


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
