"""Pictures as SVG: small, and the same to a tenth of a point."""

import re
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from steadyrl.report.drawing import COLOUR, LIGHT, STYLE, _relative, svg

SVG = "{http://www.w3.org/2000/svg}"


def picture() -> ElementTree.Element:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.0, 3.0))
        axes = figure.add_subplot()
        axes.plot([1.0, 2.0, 3.0], [0.1, 0.5, 0.2], color=COLOUR["c0"])
        axes.set_title("KL < 1 & falling")
        return ElementTree.fromstring(svg(figure, LIGHT))


def test_a_path_is_written_by_differences() -> None:
    assert (
        _relative("M 10 20 L 11.04 19.5 L 11.08 19.5 z M 5 5.26 Q 6 6 7 7.96 ")
        == "M10 20l1-.5l.1 0zm-5-14.7q1 .7 2 2.7"
    )


def test_errors_of_rounding_do_not_add_up() -> None:
    path = "M 0 0 " + "".join(f"L {i * 0.14} 1 " for i in range(1, 101))
    steps = [float(x) for x in re.findall(r"l(-?[\d.]+)", _relative(path))]
    assert sum(steps) == pytest.approx(14.0)


def test_a_picture_keeps_its_words_lines_and_colours() -> None:
    root = picture()
    assert "KL < 1 & falling" in [text.text for text in root.iter(f"{SVG}text")]
    rules = dict(re.findall(r"\.(\w+)\{([^}]*)\}", root.findtext(f"{SVG}style") or ""))
    drawn = [path for path in root.iter(f"{SVG}path") if LIGHT["c0"] in rules.get(path.get("class", ""), "")]
    assert [path.get("d", "").count("l") for path in drawn] == [2]
    used = {element.get("class") for element in root.iter()} - {None}
    assert used == set(rules)


def test_a_picture_has_no_groups_without_meaning_and_no_stand_in_colours() -> None:
    root = picture()
    assert all(group.attrib for group in root.iter(f"{SVG}g"))
    assert "c0ffe" not in ElementTree.tostring(root, encoding="unicode")
