"""The picture of a figure, as the paper draws it: reward, held-out accuracy, entropy and divergence over updates."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from steadyrl.drawing import COLOUR, LIGHT, STYLE, Scale, scale, svg, white_card
from steadyrl.lab.collapse import WINDOW, smoothed
from steadyrl.lab.figure import Figure
from steadyrl.lab.result import Result
from steadyrl.metrics import write_atomically

PANELS: tuple[tuple[str, str, Scale], ...] = (
    ("Reward", "reward/mean", "linear"),
    ("Held-out accuracy, T = 1", "", "share"),
    ("Entropy, nats", "policy/entropy", "linear"),
    ("D_KL[μ‖π_old], nats", "mismatch/k3", "log"),
)
IN_A_ROW = 6
"""Names that fit side by side below the panels."""
ROLES = ("c0", "c1", "c2", "c3", "c4", "c5")


class Curve(NamedTuple):
    """One arm: the mean over its seeds, and the band of the middle half of them."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def draw(figure: Figure, results: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Write the picture of a figure as SVG; the band spans the middle half of an arm's seeds."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": figure.name}):
        canvas = Canvas(figsize=(13.0, 3.9))
        white_card(canvas)
        for index, (title, field, kind) in enumerate(PANELS):
            axes = canvas.add_axes((0.043 + index * 0.2445, 0.265, 0.202, 0.6))
            seen = _panel(axes, figure, results, field)
            axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=10)
            axes.set_xlabel("gradient updates", fontsize=9)
            if seen:
                scale(axes, kind, seen)
        shown = [(_look(n), arm.label) for n, (name, arm) in enumerate(figure.arms.items()) if results[name]]
        lines, labels = [Line2D([], [], **look) for look, _ in shown], [label for _, label in shown]
        rows = math.ceil(len(labels) / IN_A_ROW)
        columns = math.ceil(len(labels) / rows)
        canvas.legend(lines, labels, loc="lower center", ncols=columns, frameon=False, fontsize=9)
        write_atomically(path, svg(canvas, LIGHT))


def _panel(axes: Axes, figure: Figure, results: Mapping[str, Sequence[Result]], field: str) -> list[float]:
    seen: list[float] = []
    for number, arm in enumerate(figure.arms):
        if results[arm]:
            curve = _curve(results[arm], field)
            look = _look(number)
            axes.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.13, lw=0)
            axes.plot(curve.x, curve.mean, **look)
            seen += curve.mean
    return seen


def _look(number: int) -> dict[str, Any]:
    """Colour and dash of the n-th arm."""
    return {
        "color": COLOUR[ROLES[number % len(ROLES)]],
        "ls": ("-", "--", ":")[number // len(ROLES) % 3],
        "lw": 1.7,
    }


def _curve(runs: Sequence[Result], field: str) -> Curve:
    """An arm's values at the places that all its runs have reached."""
    if field:
        n = runs[0].minibatches
        series = [smoothed([v or 0.0 for v in run.steps[field]], max(1, WINDOW // n)) for run in runs]
        x = [float((step + 1) * n) for step in range(min(map(len, series)))]
    else:
        series = [[value for _, value in run.accuracy()] for run in runs]
        x = [float(at) for at, _ in min((run.accuracy() for run in runs), key=len)]
    columns = [sorted(values[i] for values in series) for i in range(len(x))]
    outer = len(series) // 4
    return Curve(x, [fmean(c) for c in columns], [c[outer] for c in columns], [c[-1 - outer] for c in columns])
