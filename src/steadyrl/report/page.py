"""The report of a run: one HTML file that opens offline, on a light or a dark screen, also in mid-run."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steadyrl.measure.glossary import METRICS
from steadyrl.measure.trouble import unreached
from steadyrl.report.charts import (
    ACCURACY,
    CHARTS,
    COLD_START,
    ENTROPY,
    HELD_OUT_REWARD,
    MISMATCH,
    REWARD,
    Chart,
    Legend,
    draw,
)
from steadyrl.report.drawing import COLOUR, LIGHT, PALETTE, STYLE, svg, white_card
from steadyrl.report.reading import Reading, by_group, by_mode, is_partial, last_ledger, read_run
from steadyrl.run.logs import Row, write_atomically
from steadyrl.terminal import escape as spelled
from steadyrl.terminal import is_visible, tell, visible

_GROUPS, _RESPONSES, _FAILED = 3, 8, 4  # that the page shows
_LISTED = 16  # evaluations of a kind that the page lists: the first and the last


@dataclass(frozen=True, slots=True)
class Card:
    """A picture and its words."""

    title: str
    caption: str
    legend: Legend
    svg: Markup


def write_report(run: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises:
        RunError: the directory is not a run.
        ValueError: a file of it is malformed; the message names the file and the line.
    """
    read = read_run(run)
    source = resources.files("steadyrl.report").joinpath("page.html").read_text(encoding="utf-8")
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
        partial=any(map(is_partial, read.evals)),
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


def redraw(run: Path) -> None:
    """Write the report, or tell why it could not be drawn: a report stops no run."""
    try:
        write_report(run)
    except Exception as error:  # the report is optional, whatever goes wrong in it
        tell(f"the report was not drawn ({type(error).__name__}: {error}); `steadyrl show {run}` tries again")


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
            legend = draw(axes, chart, read.evals if chart is ACCURACY else read.steps)
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
        *([(HELD_OUT_REWARD, run.evals)] if any(map(is_partial, run.evals)) else []),
        *((chart, run.steps) for chart in CHARTS),
        *((chart, run.cold_start) for chart in COLD_START),
    ]
    for chart, rows in sources:
        # the salt makes the ids of one picture differ from those of every other on the page
        with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.title}):
            figure = Figure(figsize=(4.5, 2.3))
            axes = figure.add_axes((0.105, 0.125, 0.875, 0.835))
            if legend := draw(axes, chart, rows):
                drawn = svg(figure, {role: f"var(--{role})" for role in PALETTE})
                yield Card(chart.title, chart.caption, legend, Markup(drawn))


def _trained_on(run: Reading) -> tuple[list[list[Row]], list[Row]]:
    """Whole groups of the last step in `rollouts.jsonl`, the best responses first, and others whose verifier failed."""
    groups, size = by_group(run.rollouts), run.recipe.rollout.responses
    best = [sorted(rows, key=lambda row: -(row["advantage"] or 0.0)) for rows in groups.values() if len(rows) >= size]
    return [rows[:_RESPONSES] for rows in best], [row for rows in groups.values() if len(rows) < size for row in rows]


def _last_evaluation(evals: Sequence[Row]) -> list[Row]:
    return [row for row in evals if row["step"] == evals[-1]["step"]]


def _by_size(name: str) -> tuple[str, int]:
    """`pass@16` behind `pass@2`, and both behind `maj@16`."""
    kind, _, size = name.partition("@")
    return kind, int(size)


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
