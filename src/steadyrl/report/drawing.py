"""How pictures look: colours by role, a style for matplotlib, and SVG that a page or a README can show."""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

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
# matplotlib draws with placeholders. They become CSS variables, or light colours in a single picture
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
    "xtick.bottom": False,
}
LIGHT = {role: light for role, (light, _) in PALETTE.items()}
"""The colours of a single picture."""
NICE = (1, 2, 2.5, 5, 10)
"""Steps between ticks."""
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
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
    """The figure as small SVG text without metadata and embedded fonts; placeholders become `paint`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = _compact(ElementTree.fromstring(buffer.getvalue()))
    text = re.sub(r"font-family: [^;}]*", "font-family: ui-sans-serif, system-ui, Helvetica, Arial, sans-serif", text)
    for role, stand_in in COLOUR.items():
        text = text.replace(stand_in, paint[role])
    return text


def _compact(root: ElementTree.Element) -> str:
    """The same picture in a quarter of the bytes."""
    styles: dict[str, str] = {}
    for child in root:
        _shorten(child, styles)
    rules = ElementTree.Element(f"{{{SVG}}}style")
    rules.text = "".join(f".{name}{{{style}}}" for style, name in styles.items())
    root.text, root[:] = "", [rules, *_opened(root)]
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _shorten(element: ElementTree.Element, styles: dict[str, str]) -> None:
    """Lengths to a tenth of a point, styles as classes, no groups without meaning, no white space between elements."""
    for child in element:
        _shorten(child, styles)
    attributes, element.tail = element.attrib, None
    element.text = element.text and element.text.strip()
    if style := attributes.pop("style", None):
        # named by its content, so that the pictures of one page agree
        attributes["class"] = styles.setdefault(style, f"s{zlib.crc32(style.encode()):x}")
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    for name in attributes.keys() & {"x", "y", "width", "height", "transform"}:
        attributes[name] = re.sub(r"-?\d+\.\d+", lambda found: _tenths(10 * float(found[0])), attributes[name])
    if "d" in attributes:
        attributes["d"] = _relative(attributes["d"])
    if element.tag == f"{{{SVG}}}g":
        attributes.pop("id", None)
    element[:] = _opened(element)


def _opened(element: ElementTree.Element) -> list[ElementTree.Element]:
    """The children of an element; a group that says nothing is replaced by its own."""
    return [
        inner
        for child in element
        if not child.tag.endswith("}metadata") and child.find(f"{{{SVG}}}style") is None
        for inner in (child if child.tag == f"{{{SVG}}}g" and not child.attrib else [child])
    ]


def _relative(path: str) -> str:
    """A path by the differences between its points, which are short numbers; errors of rounding do not add up."""
    words: list[str] = []
    at = start = (0, 0)
    for command, numbers in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        values = [round(10 * float(number)) for number in numbers.split()]
        points = list(zip(values[::2], values[1::2], strict=True))
        words += [command.lower() if words else command]
        words += [_tenths(value - base) for point in points for value, base in zip(point, at, strict=True)]
        at = points[-1] if points else start
        start = at if command == "M" else start
    return re.sub(r" (?=[-a-z])|(?<=[a-zM]) ", "", " ".join(words))


def _tenths(value: float) -> str:
    """A number of tenths as SVG writes it, without a zero before the point."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{round(value) / 10:.6g}")
