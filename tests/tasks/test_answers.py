"""Where the final answer stands, and the table of pairs."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyrl.tasks.answers import final_answer
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.math_answers import math_verify_reward, right_responses

TABLE = Path(__file__).with_name("answer_pairs.txt")


def pairs() -> list[tuple[str, str, float]]:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("# ")]
    found = []
    for row in rows:
        reference, response, reward = row.replace("⏎", "\n").split("\t")
        found.append((reference, response, float(reward)))
    return found


def test_every_pair_of_the_table_is_read_right() -> None:
    wrong = [pair for pair in pairs() if math_verify_reward(pair[0], pair[1]) != pair[2]]
    assert wrong == []


def test_the_table_has_right_and_wrong_responses() -> None:
    rewards = [reward for _, _, reward in pairs()]
    assert len(set(pairs())) >= 600
    assert rewards.count(1.0) >= 300
    assert rewards.count(0.0) >= 200


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"\boxed{6} and then \boxed{8}", "8"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{8} so <answer>9</answer>", "8"),
        ("<answer>9</answer> The answer is 10.", "9"),
        ("The answer is 10.\nThe last line has 11.", "10"),
        ("The last line has 11.", "11"),
        ("It was -3.5 degrees.", "-3.5"),
        ("3 1/2 miles", "3 1/2"),
        ("#### 72\nQuestion: Tom has 3 apples. How many?", "72"),
        ("5 + 11", None),
        ("17 or 16", None),
        (r"\boxed{8", None),
        (r"\boxed{6} no, \boxed{8", None),
        ("<answer>8", None),
        ("", None),
        ("?!", None),
        ("<think>8</think>", None),
    ],
)
def test_the_final_answer(completion: str, answer: str | None) -> None:
    assert final_answer(completion) == answer


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        ("boxed", [r"\boxed{8}", r"So \boxed{8}."], ["8", "The answer is 8.", "<answer>8</answer>", "#### 8"]),
        ("tag", ["<answer>8</answer>", r"<answer>\boxed{8}</answer>"], ["8", r"\boxed{8}", "The answer is 8."]),
        (
            "last_number",
            ["8", "It is 8.", r"\boxed{8}", "The answer is 8"],
            ["The answer is 8. Not 9", "5 + 3", "7, 8"],
        ),
    ],
)
def test_where_the_answer_must_stand(place: Any, right: list[str], wrong: list[str]) -> None:
    assert [math_verify_reward("8", response, place=place) for response in right] == [1.0] * len(right)
    assert [math_verify_reward("8", response, place=place) for response in wrong] == [0.0] * len(wrong)


@pytest.mark.parametrize(
    ("prompt", "completion", "reward"),
    [
        ("What is 3 + 5?<think>", r"\boxed{8}", 0.0),
        ("What is 3 + 5?<think>\n", "It is 8.</think>\n\n8", 1.0),
        ("What is 3 + 5?<think>\n", "<think>It is 9.</think>\n\n8", 1.0),
        ("What is 3 + 5?<think>\nLet me see", "8", 0.0),
        ("Reason in <think> </think>. What is 3 + 5?", "8", 1.0),
        ("<think>\n\n</think>\n\n", "8", 1.0),
        ("", "I say 9</think>8", 1.0),
        ("", "I say 8</think>9", 0.0),
        ("", "<think>a</think>The answer is 8.</think>Hm", 0.0),
    ],
)
def test_a_prompt_that_ends_in_a_thought(prompt: str, completion: str, reward: float) -> None:
    assert math_verify_reward("8", completion, prompt_text=prompt) == reward


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("72", 0.0),
        ("72\n", 0.0),
        ("Natalia sold 72", 0.0),
        ("The answer is 72", 0.0),
        ("The answer is 72.", 0.0),
        ("The answer is 72.\n", 1.0),
        ("#### 72", 0.0),
        ("#### 72\n", 1.0),
        ("#### 72\n\nQuestion: To", 1.0),
        ("#### 7", 0.0),
        (r"\boxed{72}", 1.0),
        (r"\boxed{72} is", 1.0),
        (r"\boxed{72", 0.0),
        ("<answer>72</answer>", 1.0),
        ("<answer>72</ans", 0.0),
        ("<think>\\boxed{72}", 0.0),
        ("The answer is 72.\nTo check it, the answer is 7", 1.0),
    ],
)
def test_a_response_that_was_cut(completion: str, reward: float) -> None:
    assert math_verify_reward("72", completion, finish_reason="length") == reward


def test_a_response_that_was_cut_has_no_last_number() -> None:
    assert math_verify_reward("72", "72", place="last_number") == 1.0
    assert math_verify_reward("72", "72", place="last_number", finish_reason="length") == 0.0


QUESTION = "Tom has 16 apples and gives 0 apples to Ann. How many apples does Tom have now? Write it as $2^4$ or 32/2."


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("Tom has 16 apples", 0.0),
        ("tom  HAS 16 apples", 0.0),
        ("First, Tom has 16 apples and", 0.0),
        (r"\boxed{2^4}", 0.0),
        ("The answer is 32/2", 0.0),
        (r"\boxed{\frac{64}{4}}", 1.0),
        ("16", 1.0),
        ("16 apples", 1.0),
        ("He keeps 16 apples.", 1.0),
        ("The answer is 16.", 1.0),
    ],
)
def test_what_only_repeats_the_question_is_no_answer(completion: str, reward: float) -> None:
    assert math_verify_reward("16", completion, question=QUESTION) == reward


def test_a_fraction_of_the_question_may_be_the_answer() -> None:
    question = r"Which is larger, \frac{1}{2} or \frac{3}{4}?"
    assert math_verify_reward(r"\frac{3}{4}", r"\boxed{\frac{3}{4}}", question=question) == 1.0
    assert math_verify_reward("3/4", r"\boxed{\frac{3}{4}}", question=question) == 1.0


def test_a_list_of_the_question_is_no_sorted_list() -> None:
    question = "Sort these numbers: 3, 1, 2"
    assert math_verify_reward("1, 2, 3", r"\boxed{3, 1, 2}", question=question) == 0.0
    assert math_verify_reward("1, 2, 3", r"\boxed{1, 2, 3}", question=question) == 1.0


CHOICES = "Which car is faster?\nA) the old red car\nB) the new blue car\nC) 12 small cars\nD) 15 cars"


@pytest.mark.parametrize(
    ("reference", "completion", "reward"),
    [
        ("B", "B) the new blue car", 1.0),
        ("B", "The answer is B) the new blue car.", 1.0),
        ("B) the new blue car", "B) the new blue car", 1.0),
        ("the new blue car", "the new blue car", 1.0),
        ("the new blue car", "The answer is the new blue car.", 1.0),
        ("C", "C) 12 small cars", 1.0),
        ("12", "C) 12 small cars", 1.0),
        ("D", "D) 15 cars", 1.0),
        ("D", CHOICES, 0.0),
        ("D", "Question: " + CHOICES, 0.0),
        ("15", CHOICES, 0.0),
        ("D", "D) 15 cars\nor maybe B", 0.0),
    ],
)
def test_an_option_of_the_question_is_an_answer_and_all_options_are_none(
    reference: str, completion: str, reward: float
) -> None:
    assert math_verify_reward(reference, completion, question=CHOICES) == reward


def test_any_of_several_accepted_references() -> None:
    assert math_verify_reward(["1/3", "0.333"], r"\boxed{0.333}") == 1.0
    assert math_verify_reward(["1/3", "0.333"], r"\boxed{\frac{1}{3}}") == 1.0
    assert math_verify_reward(["1/3", "0.333"], r"\boxed{0.33}") == 0.0
    assert math_verify_reward(["Yes", "True"], "true") == 1.0
    with pytest.raises(TaskError):
        math_verify_reward(["5", ""], "5")


@pytest.mark.parametrize(
    "answer", ["72", r"\frac{1}{2}", "-7", "3 1/2", "$18", "50%", "Paris", "B", "B) 12", "x^2+2x+1", "(1, 2)", "1, 2"]
)
@pytest.mark.parametrize("place", ["auto", "boxed", "tag"])
def test_right_responses_are_right(answer: str, place: Any) -> None:
    forms = right_responses(answer, place=place)
    assert {"bare", "in a sentence", "after thoughts"} <= {name for name, _ in forms}
    assert [name for name, response in forms if math_verify_reward(answer, response, place=place) != 1.0] == []


def test_right_responses_of_a_worked_answer_hold_the_answer_alone() -> None:
    assert right_responses("48 + 24 = 72\n#### 72")[0] == ("bare", "72")
    for _, response in right_responses("48 + 24 = 72\n#### 72", place="last_number"):
        assert math_verify_reward("72", response, place="last_number") == 1.0


HOSTILE = {
    "open boxes": "\\boxed{" * 14_000,
    "boxes": "\\boxed{1} or " * 8_000,
    "braces": "{" * 100_000,
    "thoughts": "<think>" * 14_000,
    "answers": "the answer is " * 7_000,
    "titles": "answer\n" * 14_000,
    "marks": "#### " * 20_000,
    "marks by line": "####\n" * 20_000,
    "digits": "1" * 100_000,
    "numbers": "1 " * 50_000,
    "thousands": ",123" * 25_000,
    "fractions": "1/" * 50_000,
    "blanks": " " * 100_000 + "x",
    "lines": "\n" * 100_000 + "1",
    "dollars": "$" * 100_000,
    "maths": "\\(" * 50_000,
    "backslashes": "\\" * 100_000,
    "stars": "* " * 50_000,
    "candidates": "1 or " * 20_000,
    "powers": "2^" * 50_000,
    "tags": "<answer>1</answer>" * 5_500,
    "superscripts": "½²" * 50_000,
    "signs": "-" * 100_000,
    "matrices": "\\begin{pmatrix}" * 6_000,
    "tower": "10^{" * 20_000 + "}" * 20_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("frame", ["{}", "\\boxed{{{}}}", "The answer is {}", "<answer>{}</answer>"])
def test_hostile_text_takes_no_second(name: str, frame: str) -> None:
    completion = frame.format(HOSTILE[name])
    start = time.process_time()
    for reference in ("5", "Paris", "x+1", "(1, 2)"):
        assert math_verify_reward(reference, completion, question="What is 5 + 11?") in (0.0, 1.0)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    "formula",
    [
        "10^{10^{10}}",
        "9^{9^{9^{9}}}",
        "(((10^{500})^{500})^{500})",
        "1000!",
        "100000!",
        r"\binom{900}{450}^{900}",
        "2^{99999999}",
        "x^{99999999}",
        "(x+1)^{5000}",
        "1e5000",
        "1e999999999",
        "9" * 5000,
        r"\sqrt[999]{" + "7" * 300 + "}",
        r"\sin(10^{400})",
        r"e^{e^{e^{e^{e}}}}",
        r"\tan(\pi/2)",
        r"\frac{1}{0}",
        r"0^{-1}",
        r"\ln 0",
        r"\sum_{k=1}^{10^{9}} k",
        r"x > 10^{10^{10}}",
    ],
)
def test_large_formulas_are_not_worked_out(formula: str) -> None:
    start = time.process_time()
    for reference in ("5", "x+1", r"2\pi", "x > 3"):
        assert math_verify_reward(reference, f"\\boxed{{{formula}}}") == 0.0
    assert time.process_time() - start < 4.0  # the import of sympy among them


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            [*"0123456789.,+-*/^=(){}[]<>$%#_ \n", "\\boxed{", "\\frac", "\\sqrt", "answer is", "####", "<think>",
             "</think>", "<answer>", "</answer>", "\\text{", " or ", " and ", "x", "B)", "²", "½", "\\pm", "&", "\\\\"]
        ),
        max_size=40,
    ).map("".join),
    st.sampled_from(["5", "B", "Yes", "x+1", "(1, 2)", r"\frac{1}{2}", "50%", "B) 12"]),
    st.sampled_from(["auto", "boxed", "tag", "last_number"]),
    st.sampled_from(["stop", "length"]),
)  # fmt: skip
def test_no_text_raises(completion: str, reference: str, place: Any, finish_reason: Any) -> None:
    options: Any = {"place": place, "finish_reason": finish_reason, "question": "What is 5 + 11?"}
    assert math_verify_reward(reference, completion, **options) in (0.0, 1.0)
    found = final_answer(completion, **options)
    assert found is None or isinstance(found, str)
