"""A policy that only quotes the question earns nothing; a right answer in any usual form earns 1."""

import random
from collections.abc import Callable
from fractions import Fraction

import pytest

from steadyrl.tasks.math_answers import math_verify_reward

Problem = tuple[str, str, str]
"""Question, the expression in it, reference."""


def total(rng: random.Random) -> Problem:
    left, right = rng.randrange(100), rng.randrange(100)
    return f"What is {left} + {right}?", f"{left} + {right}", str(left + right)


def product(rng: random.Random) -> Problem:
    left, right = rng.randrange(13), rng.randrange(13)
    return f"What is {left} * {right}?", f"{left} * {right}", str(left * right)


def difference(rng: random.Random) -> Problem:
    left = rng.randrange(50)
    right = rng.randrange(left + 1)
    text = f"Tom has {left} apples and gives {right} apples to Ann. How many apples does Tom have now?"
    return text, f"{left} - {right}", str(left - right)


def larger(rng: random.Random) -> Problem:
    left, right = rng.sample(range(100), 2)
    return f"Which is larger, {left} or {right}?", f"{left} or {right}", str(max(left, right))


def fraction(rng: random.Random) -> Problem:
    left, right = Fraction(rng.randrange(1, 9), 9), Fraction(rng.randrange(1, 7), 7)
    return f"What is {left} + {right}?", f"{left} + {right}", str(left + right)


KINDS = [total, product, difference, larger, fraction]
BLIND_QUOTES = [  # these earn nothing even where the verifier does not know the question
    "{question}",
    "{expression}",
    "{expression} =",
    "{expression} is",
    "{expression} = ?",
    "To work out {expression}, let's start",
    "We need to find {expression}.",
    "The answer is {expression}",
    "The answer is {expression}.",
    "Answer: {expression}",
    "#### {expression}",
    "<answer>{expression}</answer>",
    "\\boxed{{{expression}}}",
    "${expression}$",
    "So it is $\\boxed{{{expression}}}$.",
    "**{expression}**",
    "<think>{expression}</think>",
    "<think>{expression}</think>{expression}",
    "The answer to this is {expression} and",
]
QUOTES = ["{start}", "First, {start}", "{start}\n{question}", "{question}\n{start}", "We know: {start}."]
RIGHT = [
    "{answer}",
    "{answer}.",
    "**{answer}**",
    "\\boxed{{{answer}}}",
    "So we get $\\boxed{{{answer}}}$.",
    "The answer is {answer}.",
    "Answer: {answer}",
    "{expression} = {answer}\n#### {answer}",
    "<think>{question} It is {expression}.</think>\n\nThe final answer is {answer}",
    "<answer>{answer}</answer>",
    "It comes to {answer} in the end.",
    "Final result: ${answer}$",
]


def problems(kind: Callable[[random.Random], Problem]) -> list[Problem]:
    rng = random.Random(kind.__name__)
    return [kind(rng) for _ in range(200)]


def fill(form: str, problem: Problem) -> str:
    question, expression, answer = problem
    start = question.split(". ")[0].rstrip("?")
    return form.format(question=question, expression=expression, answer=answer, start=start)


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_quotes_earns_nothing(kind: Callable[[random.Random], Problem]) -> None:
    paid = [
        (problem, form)
        for problem in problems(kind)
        for form in BLIND_QUOTES
        if math_verify_reward(problem[2], fill(form, problem)) != 0.0
    ]
    assert paid == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_that_quotes_a_known_question_earns_nothing(kind: Callable[[random.Random], Problem]) -> None:
    paid = [
        (problem, form)
        for problem in problems(kind)
        for form in BLIND_QUOTES + QUOTES
        if math_verify_reward(problem[2], fill(form, problem), question=problem[0]) != 0.0
    ]
    assert paid == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_answer_in_a_usual_form_earns_1(kind: Callable[[random.Random], Problem]) -> None:
    unpaid = [
        (problem, form)
        for problem in problems(kind)
        for form in RIGHT
        if math_verify_reward(problem[2], fill(form, problem), question=problem[0]) != 1.0
    ]
    assert unpaid == []
