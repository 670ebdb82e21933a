"""Whether an answer only restates a formula of the question. To copy a formula is not to work it out."""

import re

from steadyrl.tasks.answer_values import Equation, Formula, Number, ReadAnswer, Several
from steadyrl.tasks.formula_values import exact, is_literal
from steadyrl.tasks.formulas import Node
from steadyrl.tasks.plain_text import folded, plain_characters, plain_latex

_FRACTION = re.compile(r"\\frac\s?\{([^{}]{1,40})\}\s?\{([^{}]{1,40})\}")
_IN_WORDS = (
    (re.compile(r"\s?(?:÷|\bdivided by\b|\bover\b)\s?"), "/"),
    (re.compile(r"(?<!\\)(?:\bthe )?(?:\bsquare root of\b|\bsqrt\b)\s?(?:the number )?"), r"\\sqrt"),
    (re.compile(r" (?:raised )?to the (\d{1,6})(?:st|nd|rd|th)? power\b"), r"^\1"),
    (re.compile(r" (?:raised )?to the power(?: of)? "), "^"),
    (re.compile(r" squared\b"), "^2"),
    (re.compile(r" cubed\b"), "^3"),
)
_FOR_THE_EYE = re.compile(r"[(){}\[\]$\s]|\\[lr]brace")
_WHOLE_NUMBER = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])|(?<![\d.])\d+(?:\.\d+)?")


def is_restated(answer: ReadAnswer, reference: ReadAnswer, question: str) -> bool:
    """Whether the question contains an answer that is more than a plain number, and the reference is written otherwise.

    A fraction or a root with a whole value is restated too if the question contains its numbers. `84/7` does not answer
    how many of 84 apples each of 7 children gets.
    """
    inner = answer.value.answer if isinstance(answer.value, Equation) else answer
    value, expected = inner.value, reference.value
    if not question or not isinstance(value, Number | Formula | Several):
        return False
    node = None if isinstance(value, Several) else value.node
    if isinstance(value, Number) and (node is None or node.op == "num"):
        return False
    if answer.text == reference.text:
        return False
    if node is not None and isinstance(expected, Number | Formula) and node == expected.node:
        return False
    asked = _bare(question)
    forms = {_bare(answer.text), _bare(inner.text), "" if node is None else _written(node)} - {""}
    if any(re.search(rf"(?<![\d.]){re.escape(form)}(?!\d|\.\d)", asked) for form in forms):
        return True
    return isinstance(value, Number) and node is not None and not is_literal(node) and _is_put_together(node, question)


def _bare(text: str) -> str:
    """A formula or a question with one spelling for a fraction, a root and a power, without brackets and spaces."""
    text = _FRACTION.sub(r"\1/\2", folded(plain_latex(plain_characters(text))))
    for words, sign in _IN_WORDS:
        text = words.sub(sign, text)
    return _FOR_THE_EYE.sub("", text)


def _written(node: Node) -> str:
    """A power, a fraction, a root or a percentage of plain numbers as `_bare` writes it; empty for anything else."""
    values = [exact(arg) for arg in node.args]
    if not values or any(value is None for value in values):
        return ""
    first, last = str(values[0]), str(values[-1])
    match node.op:
        case "pow":
            return rf"\sqrt{first}" if last == "1/2" else f"{first}^{last}"
        case "root":
            return rf"\sqrt{first}" if last == "2" else ""
        case "div" | "over":
            return f"{first}/{last}"
        case "percent":
            return f"{first}%"
    return ""


def _is_put_together(node: Node, question: str) -> bool:
    """Whether a fraction or a root is made of numbers of the question."""
    is_half = node.op == "pow" and str(exact(node.args[1])) == "1/2"
    if node.op not in ("div", "over", "root") and not is_half:
        return False
    used = node.args if node.op in ("div", "over") else node.args[:1]
    given = {number.replace(",", "") for number in _WHOLE_NUMBER.findall(plain_characters(question))}
    return all(str(exact(arg)) in given for arg in used)
