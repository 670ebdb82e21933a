"""How pictures look: colours by role, a style for matplotlib, and SVG that a page or a README can show."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

PALETTE = {
    "c0": ("#2b6cb0", "#7db3ec"),
    "c1": ("#d97a1f", "#f0ab6b"),
    "c2": ("#2f8f6b", "#6fcaa6"),
    "c3": ("#8a63b8", "#bb9be3"),
    "c4": ("#c0504d", "#ee8f8b"),
    "c5": ("#9aa1ab", "#6c7480"),
    "ink": ("#5b6470", "#a3acb8"),
    "line": ("#e4e7eb", "#333a44"),
}
"""Colours by role, on a light and on a dark ground."""
# matplotlib draws in stand-ins; they become CSS variables or, in a picture that stands alone, light colours
COLOUR = {role: f"#c0ffe{index}" for index, role in enumerate(PALETTE)}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["ink"],
    "axes.edgecolor": COLOUR["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.015,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["ink"],
    "ytick.labelcolor": COLOUR["ink"],
    "ytick.left": False,
}
LIGHT = {role: light for role, (light, _) in PALETTE.items()}
"""The colours of a picture that stands alone."""
NICE = (1, 2, 2.5, 5, 10)
"""Steps between ticks."""
Scale = Literal["linear", "share", "log"]
"""`share`: in percent. `log`: logarithmic if the positive values span a factor of 5 or more."""


def scale(axes: Axes, kind: Scale, values: Sequence[float]) -> None:
    """Ticks and limits of the vertical axis for these values."""
    unit, sign = (100, "%") if kind == "share" else (1, "")
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=NICE))
    positive = [value for value in values if value > 0]
    if kind == "log" and positive and (span := max(positive) / min(positive)) >= 5:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 50 else (1,), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    elif min(values) == max(values) == 0:
        axes.set_ylim(0, 0.01)
    elif min(values) >= 0 and (min(values) < max(values) / 2 or len(values) < 10):
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{unit * value:g}{sign}"))


def white_card(figure: Figure) -> None:
    """A ground with round corners under the whole figure."""
    edge: Any = {"fc": "#ffffff", "ec": COLOUR["line"], "boxstyle": "round,pad=0,rounding_size=0.12"}
    inches: Any = figure.dpi_scale_trans
    width, height = figure.get_size_inches()
    figure.add_artist(FancyBboxPatch((0.02, 0.02), width - 0.04, height - 0.04, transform=inches, zorder=-1, **edge))


def svg(figure: Figure, paint: Mapping[str, str]) -> str:
    """The figure as SVG text without prologue, metadata and fonts of its own; stand-ins become `paint`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", ""),
        (r'<g id="[^"]*"', "<g"),
        (r"font-family: [^;\"]*", "font-family: ui-sans-serif, system-ui, Helvetica, Arial, sans-serif"),
    ):
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    for role, stand_in in COLOUR.items():
        text = text.replace(stand_in, paint[role])
    return text
