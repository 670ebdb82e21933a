"""Responses that deserve nothing: what the audit of a verifier tries on a problem."""

import ast
import math
import re
from dataclasses import dataclass

from steadyrl.tasks.base import Example, RightResponses

_LARGEST_INTEGER = 100
_LONGEST_CODE = 200  # characters of an answer
_FILLER = "well, let me think about this again, and then once more; " * 20
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_FORMULA = re.compile(r"\$([^$]+)\$")
_RUN = re.compile(r"[-\d\s.,()+*/^%×·÷−]+")
_OPERATION = re.compile(r"\d\)*\s?[-+*/^%×·÷−]\s?[-(]*\d")
_UNEVALUATED = re.compile(r"\d\)*\s?(?:[-+*×·−]|\\times|\\cdot)\s?[-(]*\d")
_CLOSE = 0.01  # half of a number that is this near to the whole is a rounded answer, not a wrong one


@dataclass(frozen=True, kw_only=True, slots=True)
class Junk:
    """A response that must not be paid.

    For instance, `Junk(form='"nan"', response=r"\\boxed{nan}")`.
    """

    form: str
    """What kind of junk it is."""
    response: str
    """The response."""
    certain: bool = True
    """Off: it may be right, so a verifier that pays it is doubtful and no more."""


def junk_responses(
    example: Example, right: RightResponses, other: tuple[Example, RightResponses] | None = None
) -> list[Junk]:
    """All junk for one problem, the empty response first.

    Junk that is written like an accepted answer is left out: `None` is right where the answer is "None".

    Args:
        example: The problem.
        right: Its right responses.
        other: Another problem with another answer, or None.
    """
    accepted = _accepted(example)
    texts = [
        Junk(form='"nan"', response="nan"),
        Junk(form='"inf"', response="inf"),
        Junk(form='"None"', response="None"),
        Junk(form="zero", response="0"),
        Junk(form="empty list", response="[]"),
        Junk(form="unclosed brackets", response="((("),
        Junk(form="integers in a row", response=_integers(accepted)),
        *(
            Junk(form="code that computes the answer", response=_code(a))
            for a in accepted[:1]
            if len(a) <= _LONGEST_CODE
        ),
    ]
    quoted = [_luck(Junk(form="question quoted", response=example.question), accepted)]
    if expressions := [e for e in _expressions(example.question) if not _same(e, accepted)]:
        quoted.append(_luck(_quotation("\n".join(expressions)), accepted))
        texts.append(_luck(_quotation(expressions[-1]), accepted))
    bare = [
        *quoted,
        *texts,
        Junk(form="unclosed brackets", response="\\boxed{<answer>((("),
        Junk(form="refusal", response="I do not know."),
        Junk(form="filler", response=_FILLER),
    ]
    wrong = [text for text in texts if not _same(text.response, accepted)]
    placed = [junk for text in wrong for junk in _in_place(text, accepted, right)]
    found = {"": Junk(form="empty response", response="")}
    for junk in (*bare, *placed, *_half(accepted, right), *_of_another(accepted, right, other)):
        if not _same(junk.response, accepted):
            found.setdefault(junk.response.strip(), junk)
    return list(found.values())


def _accepted(example: Example) -> list[str]:
    """Every accepted answer; of a worked one in the style of GSM8K, what follows the mark."""
    answers = example.accepted or (example.answer,)
    return [text for answer in answers if (text := answer.rpartition("####")[2].strip())]


def _value(text: str) -> float | None:
    """The number or the simple fraction that a text is, or None."""
    plain = _FRACTION.sub(r"\1/\2", text).replace(",", "").strip().removeprefix("$")
    above, slash, below = plain.partition("/")
    try:
        return float(above) / float(below) if slash else float(plain)
    except (ValueError, ArithmeticError):
        return None


def _same(text: str, accepted: list[str]) -> bool:
    """Whether a text is written like an accepted answer, or is the same number."""
    value = _value(text)
    return any(text.strip().casefold() == a.casefold() or (value is not None and value == _value(a)) for a in accepted)


def _integers(accepted: list[str]) -> str:
    """0, 1, 2, …, beginning and ending with a number that is not the answer."""
    numbers = list(range(_LARGEST_INTEGER + 1))
    if _same("0", accepted):
        numbers[:2] = [1, 0]
    while _same(str(numbers[-1]), accepted):
        numbers.append(numbers[-1] + 1)
    return " ".join(map(str, numbers))


def _expressions(question: str) -> list[str]:
    """The formulas and calculations of a question, as it writes them."""
    runs = (run for run in _RUN.findall(_FORMULA.sub(" ", question)) if _OPERATION.search(run))
    return [text for found in (*_FORMULA.findall(question), *runs) if (text := found.strip(" .,\n"))]


def _quotation(text: str) -> Junk:
    """What a question calculates. A fraction, a root or a power is a value, which a verifier may well accept."""
    return Junk(form="question's expressions", response=text, certain=bool(_UNEVALUATED.search(text)))


def _luck(junk: Junk, accepted: list[str]) -> Junk:
    """The same, but not certain where it begins or ends with the answer: `0+82=` is answered by its last number."""
    words = f" {junk.response.casefold()} ".replace("=", " ").rstrip(" .,;:!?\n")
    numbers = _NUMBER.findall(junk.response)
    lucky = any(_same(end, accepted) for end in (*numbers[:1], *numbers[-1:])) or any(
        re.match(rf"\s*{answer}\b", words) or re.search(rf"\b{answer}$", words)
        for answer in (re.escape(answer.casefold()) for answer in accepted)
    )
    return Junk(form=junk.form, response=junk.response, certain=junk.certain and not lucky)


def _code(answer: str) -> str:
    """A Python expression whose value is the answer, and which neither holds nor ends with it."""
    spelt = "+".join(f"chr({ord(character)})" for character in answer)
    try:
        literal = not isinstance(ast.literal_eval(answer), str)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = False
    return f"eval({spelt})" if literal else spelt


def _in_place(junk: Junk, accepted: list[str], right: RightResponses) -> list[Junk]:
    """Junk where a right response has its answer: a verifier that finds the place must still read what is there."""
    for _, response in right.forms[1:2] or right.forms[:1]:
        before, _, after = response.rpartition(accepted[0])
        if before:
            return [Junk(form=junk.form, response=before + junk.response + after, certain=junk.certain)]
    return []


def _half(accepted: list[str], right: RightResponses) -> list[Junk]:
    """The first half of a right response, unless this half is still the answer: rounded, or without its unit."""
    for _, response in right.forms[:1]:
        half, rest = response[: len(response) // 2], response[len(response) // 2 :]
        value, wholes = _value(half), [whole for answer in accepted if (whole := _value(answer)) is not None]
        rounded = value is not None and any(math.isclose(value, whole, rel_tol=_CLOSE) for whole in wholes)
        if rounded or (value is not None and not re.search(r"\d", rest)):
            return []
        certain = right.only and not any(answer in half for answer in accepted)
        return [Junk(form="half of a right response", response=half, certain=certain)]
    return []


def _of_another(accepted: list[str], right: RightResponses, other: tuple[Example, RightResponses] | None) -> list[Junk]:
    """The right response to another problem, and both answers side by side; not where its answer is right here too.

    A user's own function may read one form only, so it gets the other answer in every form.
    """
    if other is None or not accepted or any(_same(answer, accepted) for answer in _accepted(other[0])):
        return []
    forms = (other[1].forms[1:2] or other[1].forms[:1]) if right.every else other[1].forms
    foreign = _accepted(other[0])[:1]
    both = [(f"It is {answer} or {accepted[0]} or {answer}", _alike(answer, accepted[0])) for answer in foreign]
    return [
        *(Junk(form="another problem's answer", response=text, certain=right.only) for _, text in forms),
        *(Junk(form="two answers", response=text, certain=right.only and alike) for text, alike in both),
    ]


def _alike(one: str, another: str) -> bool:
    """Whether both are numbers, or both are words: a number among words may be read as the only answer."""
    numbers = [_value(text) is not None for text in (one, another)]
    words = [text.replace(" ", "").isalpha() for text in (one, another)]
    return all(numbers) or all(words)
