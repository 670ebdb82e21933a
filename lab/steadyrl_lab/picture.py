"""The picture of a figure, as the paper draws it: reward, held-out accuracy, entropy and divergence over updates.

An arm's label sets its style: the part before the comma its colour, the part after it its dash.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from steadyrl.collapse import WINDOW
from steadyrl.report.drawing import COLOUR, LIGHT, STYLE, Scale, scale, svg, white_card
from steadyrl.run.logs import write_atomically
from steadyrl_lab.figure import Figure
from steadyrl_lab.result import Result

PANELS: tuple[tuple[str, str, Scale], ...] = (
    ("Reward", "reward/mean", "linear"),
    ("Held-out accuracy, T = 1", "", "share"),
    ("Entropy, nats", "policy/entropy", "linear"),
    ("D_KL[μ‖π_old], nats", "mismatch/k3", "log"),
)
IN_A_ROW = 6
"""Names that fit side by side below the panels."""
ROLES = ("c0", "c1", "c2", "c3", "c4", "c5", "ink")
DASHES = ("-", "--", ":", "-.")
PLAIN = ("", "clip")
"""What leaves a line undashed."""

Look = dict[str, Any]


class Curve(NamedTuple):
    """One arm: the mean over its seeds, and the band of the middle ones: three of five, all of fewer than four."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw(figure: Figure, results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Write the picture of a figure as SVG; a cross in the first panel is the collapse of one run."""
    looks = _looks([arm.label for arm in figure.arms.values()])
    shown = [(runs, look) for name, look in zip(figure.arms, looks, strict=True) if (runs := results[name])]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure.name}):
        canvas = Canvas(figsize=(13.0, 3.9))
        white_card(canvas)
        for index, (title, field, kind) in enumerate(PANELS):
            axes = canvas.add_axes((0.043 + index * 0.2445, 0.265, 0.202, 0.6))
            seen = [value for runs, look in shown for value in _arm(axes, runs, field, look)]
            axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=10)
            axes.set_xlabel("gradient updates", fontsize=9)
            if seen:
                scale(axes, kind, seen)
            if kind == "share":
                axes.set_ylim(bottom=0.0)
        lines, labels = [Line2D([], [], **look) for _, look in shown], [str(look["label"]) for _, look in shown]
        rows = math.ceil(len(labels) / IN_A_ROW)
        columns = math.ceil(len(labels) / rows)
        canvas.legend(lines, labels, loc="lower center", ncols=columns, frameon=False, fontsize=9)
        write_atomically(path, svg(canvas, LIGHT))


def _arm(axes: Axes, runs: Sequence[Result], field: str, look: Look) -> list[float]:
    """Draw an arm into a panel; the values of its mean."""
    curve = _curve(runs, field)
    axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.13, lw=0)
    axes.plot(curve.x, curve.mean, **look)
    if field == "reward/mean":
        fallen = [(run, step) for run in runs if (step := run.collapsed_at) is not None and run.steps[field]]
        at = [float((step + 1) * run.minibatches) for run, step in fallen]
        rewards = [value if (value := run.course(field)[step]) is not None else math.nan for run, step in fallen]
        axes.plot(at, rewards, ls="", marker="x", ms=6, mew=1.6, color=look["color"])
    return curve.mean


def _looks(labels: Sequence[str]) -> list[Look]:
    """Colour and dash of every arm."""
    parts = [label.partition(", ")[::2] for label in labels]
    colours = list(dict.fromkeys(name for name, _ in parts))
    others = list(dict.fromkeys(rest for _, rest in parts if rest not in PLAIN))
    return [
        {
            "color": COLOUR[ROLES[colours.index(name) % len(ROLES)]],
            "ls": DASHES[(1 + others.index(rest)) % len(DASHES)] if rest in others else "-",
            "lw": 1.7,
            "label": label,
        }
        for label, (name, rest) in zip(labels, parts, strict=True)
    ]


def _curve(runs: Sequence[Result], field: str) -> Curve:
    """An arm's values at the places that all its runs have reached, where any was measured there.

    `field` is a metric, averaged as the reward is; "" is held-out accuracy.
    """
    series = [run.course(field) if field else [value for _, value in run.accuracy()] for run in runs]
    n = runs[0].minibatches
    x = [(step + 1) * n for step in range(len(series[0]))] if field else [at for at, _ in runs[0].accuracy()]
    # a metric is averaged over WINDOW updates: more points would say the same again
    places = list(zip(x, *series, strict=False))  # one may have stopped early
    drawn = {*range(0, len(places), max(1, WINDOW // n) if field else 1), len(places) - 1}
    columns = {
        float(at): sorted(value for value in values if value is not None)
        for index, (at, *values) in enumerate(places)
        if index in drawn
    }
    kept = {at: column for at, column in columns.items() if column}
    return Curve(
        x=list(kept),
        mean=[fmean(column) for column in kept.values()],
        low=[column[len(column) // 4] for column in kept.values()],
        high=[column[-1 - len(column) // 4] for column in kept.values()],
    )
