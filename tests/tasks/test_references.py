"""Reading references: what they are worth, what equals them, and what is rejected."""

import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steadyrl.tasks.answer_values import Choice, Equation, Formula, Number, Opaque, Several
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.formula_values import exact, is_literal, is_value, is_worked_out
from steadyrl.tasks.formulas import NotAFormula, parse
from steadyrl.tasks.math_answers import math_verify_reward
from steadyrl.tasks.references import read_reference


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("72", 72), ("-7", -7), ("+7", 7), ("−7", -7), ("–7", -7), ("007", 7), ("2.50", "5/2"), (".5", "1/2"),
        ("5.", 5),
        ("1,234", 1234), ("1,234.5", "2469/2"), ("1 234 567", 1234567), ("1'234", 1234), ("1_234", 1234),
        ("1{,}234", 1234), ("1\\,234", 1234), ("1\u202f234", 1234), ("1\u00a0234", 1234), ("1.234,56", "30864/25"),
        ("1.234.567", 1234567), ("１２", 12), ("１，２３４", 1234), ("٣٤", 34), ("५", 5), ("𝟓", 5), ("½", "1/2"),
        ("3½", "7/2"), ("2³", 8), ("10⁻⁵", "1/100000"), ("5\u200b", 5), ("$18", 18), ("\\$18", 18), ("$18$", 18),
        ("$1,200.50", "2401/2"), ("\\$32,348", 32348), ("-$5", -5), ("$-5", -5), ("€18", 18), ("18€", 18), ("18 €", 18),
        ("£5.50", "11/2"), ("US$5", 5), ("18 dollars", 18), ("$3.50 per hour", "7/2"), ("18 USD", 18), ("50%", "1/2"),
        ("50\\%", "1/2"), ("50 percent", "1/2"), ("12.5 %", "1/8"), ("-5%", "-1/20"), ("3 1/2", "7/2"),
        ("-3 1/2", "-7/2"), ("3\\frac{1}{2}", "7/2"), ("3\\frac12", "7/2"), ("1 1/2 cups", "3/2"), ("7/2", "7/2"),
        ("\\dfrac{14}{4}", "7/2"), ("1e-05", "1/100000"), ("1.5e3", 1500), ("1.5E+3", 1500),
        ("6.02 \\times 10^{23}", 602 * 10**21), ("6.02 x 10^23", 602 * 10**21), ("0.1\\overline{6}", "1/6"),
        ("12\\text{ cm}", 12), ("9.8 m/s^2", "49/5"), ("100 km/h", 100), ("90^\\circ", 90), ("-40 °F", -40),
        ("3 million", 3000000), ("2 dozen", 24), ("seven", 7), ("twenty-one", 21), ("**72**", 72), ("`72`", 72),
        ("72 apples", 72), ("\\(72\\)", 72), ("\\boxed{72}", 72), ("48 + 24 = 72\n#### 72", 72), ("#### 1,234", 1234),
        ("The answer is 72.", 72), ("<answer>72</answer>", 72), ("\\frac{1}{2}\\%", "1/200"), ("\\sqrt{16}", 4),
        ("2^{10}", 1024), ("2**10", 1024), ("8^{1/3}", 2), ("about 5", 5), ("\\approx 3.14", "157/50"),
    ],
)  # fmt: skip
def test_numbers(answer: str, value: int | str) -> None:
    read = read_reference(answer).value
    assert isinstance(read, Number)
    assert read.value == Fraction(value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("Paris", None), ("New York", None), ("No", None), ("nan", None), ("None", None), ("10:30", None),
        ("3:4", None),
        ("2020-01-01", None), ("1st", None), ("H2O", None), ("Apollo 11", None), ("Paris, France", None), ("ab", None),
        ("\\text{all real numbers}", None), ("答案", None), ("五", None), ("N. Bohr", None), ("don't know", None),
        ("B", Choice), ("(b)", Choice), ("B.", Choice), ("B)", Choice), ("B) 12", Choice), ("\\textbf{(B)}", Choice),
        ("\\mathrm{(D)}\\ 12", Choice), ("[B]", Choice), ("1,23", Several), ("1, 2", Several), ("(1, 2)", Several),
        ("\\{1, 2\\}", Several), ("[1, 2)", Several), ("1 and 2", Several), ("\\pm 3", Several), ("x = 5", Equation),
        ("f(x) = x^2", Equation), ("2\\pi", Formula), ("x^2", Formula), ("5+11", Formula), ("3xy", Formula),
        ("5!", Formula),
        ("x > 5", Opaque), ("2x = 10", Opaque), ("\\infty", Opaque), ("∞", Opaque), ("\\emptyset", Opaque),
    ],
)  # fmt: skip
def test_what_is_no_number(answer: str, kind: type | None) -> None:
    value = read_reference(answer).value
    assert value is None if kind is None else isinstance(value, kind)


@pytest.mark.parametrize(
    "answer",
    [
        "", "  ", "\n", "####", "work ####", "$", "\\$", "$$", "%", "***", "???", "-", "+", "()", "{}", "\\boxed{}",
        "\\text{}", "\\", "\u200b", "\ud800", "5 +", "5 5", "1 2 3", "((3", "--5", "1..2", "\\frac{1}{", "\\foo{3}",
        "1/0", "\\frac{5}{0}", "word " * 51,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_rejected(answer: str) -> None:
    with pytest.raises(TaskError, match="cannot read the answer") as caught:
        read_reference(answer)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("50%", ["50%", "50", "0.5", "1/2"], ["5", "0.05", "5000", "500%"]),
        ("0.5", ["50%", "0.50"], ["50", "0.5%"]),
        ("50", ["50%", "50.0"], ["0.5", "5000%x"]),
        ("$18", ["18", "$18", "18 dollars", "$18.00"], ["€18", "18 euros", "18 cents", "1.8"]),
        ("12 cm", ["12", "12 cm", "12cm", "12 centimeters"], ["12 m", "12 mm", "1.2"]),
        ("5 m/s", ["5", "5 m/s"], ["5 km/h"]),
        ("5", ["5.", "5.0"], [".5", "5!", "5%x", "5'", "0.5"]),
        ("0.333", ["0.333", ".333"], ["1/3", "0.3333", "0.33"]),
        ("3.14", ["3.1400"], ["3.1401", "\\pi"]),
        ("1e-05", ["0.00001", "10^{-5}", "1 \\times 10^{-5}", "1e-5"], ["e-5", "-5", "0.0001"]),
        ("B) 12", ["B", "(B)", "B) 12", "(B) 12", "B. 12", "12"], ["A", "A) 12", "B) 13", "13"]),
        ("x = 5", ["5", "x=5", "x = 5.0"], ["y = 5", "x = 6", "2x = 5"]),
        ("(1, 2)", ["(1,2)", "(1, 2.0)", "1, 2"], ["(2,1)", "[1,2]", "\\{1,2\\}", "1", "(1,2,3)"]),
        ("\\{1, 2\\}", ["\\{2,1\\}", "1, 2", "2, 1"], ["(1,2)", "\\{1\\}", "\\{1,2,2\\}"]),
        ("1, 1, 2", ["1, 2, 1"], ["1, 2, 2", "1, 2"]),
        ("(0, 1]", ["(0,1]"], ["(0,1)", "[0,1]", "[0,1)"]),
        ("x = 1, y = 2", ["x=1, y=2", "y = 2, x = 1"], ["x = 2, y = 1"]),
        ("2\\pi", ["2\\pi", "\\pi \\cdot 2", "2 \\pi \\text{ cm}"], ["6.283185307179586", "2", "\\pi"]),
        ("5+11", ["5+11", "11 + 5", "16"], ["4 + 12", "8 \\cdot 2", "17"]),
        ("5!", ["120", "5!"], ["5", "60"]),
        ("\\binom{5}{2}", ["10", "\\binom{5}{2}"], ["9", "5"]),
        ("Paris", ["paris", "\\text{Paris}", "Paris."], ["Pairs", "Par is", "Paris, London"]),
        ("None", ["none"], ["", "nan", "0"]),
        ("007", ["7", "007"], ["70"]),
    ],
)
def test_what_equals_a_reference(reference: str, right: list[str], wrong: list[str]) -> None:
    assert [answer for answer in right if math_verify_reward(reference, f"\\boxed{{{answer}}}") != 1.0] == []
    assert [answer for answer in wrong if math_verify_reward(reference, f"\\boxed{{{answer}}}") != 0.0] == []


@pytest.mark.parametrize(
    ("formula", "literal", "value", "worked_out"),
    [
        ("7", True, True, True),
        ("-7", True, True, True),
        ("1.6 * 10^{3}", True, True, True),
        ("\\frac{1}{2}", True, True, True),
        ("3\\frac{1}{2}", True, True, True),
        ("50%", True, True, True),
        ("\\frac{14}{2}", False, True, True),
        ("2^4", False, True, True),
        ("\\sqrt{16}", False, True, True),
        ("5+11", False, False, False),
        ("16-0", False, False, False),
        ("4*4", False, False, False),
        ("(4)(4)", False, False, False),
        ("84÷7", False, False, False),
        ("\\frac{10+4}{2}", False, False, False),
        ("\\sqrt{9+7}", False, False, False),
        ("2^{2+2}", False, False, False),
        ("2^{2^2}", False, False, False),
        ("\\frac{\\frac{1}{2}}{3}", False, False, False),
        ("4!", False, False, False),
        ("2\\pi+3", False, False, True),
        ("\\frac{1+\\sqrt{5}}{2}", False, False, True),
        ("3+2\\sqrt{2}", False, False, True),
        ("2*4\\sqrt{2}", False, False, False),
        ("\\pi+3+4", False, False, False),
    ],
)
def test_what_is_worked_out(formula: str, literal: bool, value: bool, worked_out: bool) -> None:
    node = parse(formula)
    assert (is_literal(node), is_value(node), is_worked_out(node)) == (literal, value, worked_out)


@pytest.mark.parametrize(
    ("formula", "value"),
    [("2^3^2", None), ("1 2", None), ("x 2", None), ("2--3", 5), ("2 3", None), ("\\sqrt[3]{-8}", -2), ("27^{2/3}", 9),
     ("0^0", None), ("2^{99999}", None), ("10^{2000}", 10**2000), ("5!", 120), ("\\binom{5}{2}", 10), ("|-3|", 3),
     ("2/3/4", "1/6"), ("2*3/4", "3/2"), ("\\frac12", "1/2"), ("\\frac{1}2", "1/2"), ("-2^2", -4), ("(-2)^2", 4)],
)  # fmt: skip
def test_exact_values(formula: str, value: Any) -> None:
    try:
        found = exact(parse(formula))
    except NotAFormula:
        found = None
    assert found == (None if value is None else Fraction(value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("0123456789.,+-*/^={}()[]\\ frac$%xB;", max_size=30))
@example("0,=")
@example("= , 5")
def test_every_text_is_read_or_rejected(answer: str) -> None:
    try:
        read_reference(answer)
    except TaskError:
        return
    assert math_verify_reward(answer, f"\\boxed{{{answer}}}") in (0.0, 1.0)


def test_100000_plain_references_are_read_in_seconds() -> None:
    answers = ["72", "-1.5", "Paris", "New York", "B", "$18", "1,234", "50%", "3 1/2", "work 48+24=72\n#### 72"]
    start = time.process_time()
    for number in range(10_000):
        read_reference(answers[number % len(answers)])
    assert time.process_time() - start < 3.0  # a tenth of them; 0.5 s on a quiet machine


def test_numbers_and_words_never_load_sympy() -> None:
    code = (
        "import sys\nfrom steadyrl.tasks.math_answers import math_verify_reward as reward\n"
        "for answer in ('72', 'Paris', 'B', '$18', '3 1/2', '50%', r'\\frac{1}{2}', '1, 2'):\n"
        "    assert reward(answer, f'The answer is {answer}.') == 1.0, answer\n"
        "assert not {'sympy', 'math_verify', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_documented_table_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| `")]
    rows = [row for row in rows if len(row) == 3]
    assert len(rows) == 16
    for reference, right, wrong in rows:
        for form in ("\\boxed{%s}", "The answer is %s."):
            for cell, reward in ((right, 1.0), (wrong, 0.0)):
                for answer in re.findall(r"`([^`]+)`", cell):
                    assert math_verify_reward(reference.strip("`"), form % answer) == reward, (reference, form, answer)
