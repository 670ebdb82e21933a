"""Answers that are read with their question, and responses that were cut."""

import pytest

from steadyrl.tasks.math_answers import math_verify_reward

POWER = [r"\boxed{2^{10}}", "2^10", r"\boxed{(2)^{10}}", r"\boxed{{2}^{10}}", r"\boxed{2^{10.0}}", "2**10", "2¹⁰"]
POWER += [r"\boxed{2^{10} = 2^{10}}", r"\boxed{x = 2^{10}}", r"\boxed{2^{10} \text{ units}}", r"\boxed{+2^{10}}"]
POWER += ["The answer is $2^{10}$.", "<answer>2^10</answer>", r"\boxed{\$2^{10}}", r"\boxed{2^{\frac{10}{1}}}"]
QUOTIENT = ["84/7", r"\boxed{84/7}", r"\boxed{\frac{84}{7}}", r"\boxed{\dfrac{84}{7}}", "The answer is 84/7."]
QUOTIENT += [r"\boxed{x=\frac{84}{7}}", r"\boxed{84/7 = 84/7}", r"\boxed{\frac{84}{7} \text{ apples}}"]
QUOTIENT += [r"The answer is $\frac{84}{7}$"]
ROOT = [r"\boxed{\sqrt{256}}", "√256", r"The answer is $\sqrt{256}$.", r"\boxed{256^{1/2}}", r"\boxed{\sqrt[2]{256}}"]
SQUARE = [r"\boxed{4^2}", "4^2", "The answer is $4^{2}$.", "4²"]

RESTATED = [
    ("1024", ["What is 2^10?", "What is $2^{10}$?", "What is 2 to the 10th power?", "Compute 2¹⁰."], POWER),
    (
        "12",
        [
            "What is 84 / 7?",
            "What is 84 divided by 7?",
            "What is 84 ÷ 7?",
            r"Work out $84 \div 7$.",
            r"Compute \frac{84}{7}.",
            "84 apples are shared by 7 children. How many does each of them get?",
        ],
        QUOTIENT,
    ),
    (
        "16",
        [
            "What is the square root of 256?",
            "What is sqrt(256)?",
            "Find √256.",
            r"Find $\sqrt{256}$.",
            "The area of a square is 256. How long is a side?",
        ],
        ROOT,
    ),
    ("16", ["What is 4 squared?", "What is 4 to the power of 2?", "Compute 4².", "What is 4^2?"], SQUARE),
    (r"\frac{1}{2}", ["Simplify 17/34.", r"Simplify $\frac{17}{34}$."], [r"\boxed{\frac{17}{34}}", "17/34"]),
    ("x^2-1", ["Expand (x-1)(x+1).", r"Expand $\left(x-1\right)\left(x+1\right)$."], [r"\boxed{(x-1)(x+1)}"]),
    (r"2\sqrt{2}", ["Simplify √8.", "Simplify sqrt(8)."], [r"\boxed{\sqrt{8}}"]),
]


@pytest.mark.parametrize(
    ("reference", "question", "response"),
    [(reference, asked, said) for reference, questions, told in RESTATED for asked in questions for said in told],
)
def test_a_formula_of_the_question_is_no_answer(reference: str, question: str, response: str) -> None:
    assert math_verify_reward(reference, response, question=question) == 0.0


@pytest.mark.parametrize(
    ("reference", "question", "responses"),
    [
        ("1024", "What is 2^10?", ["1024", "2^10 = 1024", r"\boxed{2^{10} = 1024}", "The answer is 2^10 = 1024."]),
        ("1024", "How many colourings of 10 squares with 2 colours are there?", [r"\boxed{2^{10}}", "1024"]),
        ("12", "What is 84 / 7?", ["12", "84/7 = 12", r"\boxed{\frac{84}{7} = 12}", r"\boxed{\frac{24}{2}}"]),
        (r"\frac{1}{2}", "Simplify 17/34.", ["1/2", r"\boxed{\frac12}", "17/34 = 1/2", "0.5"]),
        ("1/2", "Tom ate 1/2 of the cake. How much is left?", ["1/2", r"\boxed{\frac{1}{2}}", "0.5"]),
        ("0.5", "Tom ate 11/2 pies. What is half of one pie?", ["1/2", r"\boxed{\frac{1}{2}}"]),
        ("3^5", "Which is larger, 3^5 or 5^3?", ["3^5", r"\boxed{3^{5}}", "The answer is 3^5."]),
        ("x+1", "Simplify (x^2+2x+1)/(x+1).", ["x+1", r"\boxed{x+1}", "1+x"]),
        ("(x+1)^2", "Factor x^2+2x+1.", ["(x+1)^2", r"\boxed{(x+1)(x+1)}"]),
        ("2, 3", "What are the roots of (x-2)(x-3)=0?", ["2, 3", "x=2 or x=3", r"\boxed{x = 2, 3}"]),
        ("B", "Pick one. (A) 1 (B) 2 (C) 3 (D) 4", ["B", "(B) 2", "The answer is (B) 2.", "Option B", "**B. 2**"]),
        ("B", "Capital of France?\nA. Lyon\nB. Paris\nC. Nice", ["B. Paris", "Paris is the capital, so B."]),
        ("yes", "Is 7 prime? Answer yes or no.", ["Yes", "Yes, 7 is prime.", r"\boxed{\text{yes}}", "**Yes**"]),
    ],
)
def test_what_was_worked_out_is_right_beside_its_question(reference: str, question: str, responses: list[str]) -> None:
    assert [math_verify_reward(reference, said, question=question) for said in responses] == [1.0] * len(responses)


@pytest.mark.parametrize(
    "response",
    [
        "What is 84 / 7? (A) 10 (B) 11 (C) 12",
        "(A) 10 (B) 11 (C) 12",
        "A) 10 B) 11 C) 12",
        "A. 10 B. 11 C. 12",
    ],
)
def test_options_in_one_line_are_no_answer(response: str) -> None:
    assert math_verify_reward("12", response) == 0.0


@pytest.mark.parametrize(
    "response", [r"So \boxed{12}. Now let me", "<answer>12</answer> Let", "#### 12\nLet me", "The answer is 12.\nTo"]
)
def test_a_closed_answer_of_a_cut_response_counts(response: str) -> None:
    assert math_verify_reward("12", response, finish_reason="length") == 1.0


@pytest.mark.parametrize(
    "response", [r"\boxed{12", "<answer>12", "#### 12", "The answer is 12", "12", "6 + 6 = 12", "So **12"]
)
def test_an_open_answer_of_a_cut_response_does_not_count(response: str) -> None:
    assert math_verify_reward("12", response, finish_reason="length") == 0.0
