import random

import pytest

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.chains import Chains, _work_out


def chains(*, seed: int = 0, min_terms: int = 3, max_terms: int = 8, teacher_noise: float = 0.0) -> Chains:
    return Chains(seed=seed, min_terms=min_terms, max_terms=max_terms, teacher_noise=teacher_noise)


def terms(question: str) -> int:
    return sum(character.isdigit() for character in question)


@pytest.mark.parametrize(
    ("digits", "signs", "style", "solution"),
    [
        ([0, 4, 5], ["-", "+"], "steps", "0-4=6;6+5=1;>1"),
        ([9, 9], ["+"], "steps", "9+9=8;>8"),
        ([0, 1], ["-"], "steps", "0-1=9;>9"),
        ([3, 5, 8, 0], ["-", "-", "+"], "steps", "3-5=8;8-8=0;0+0=0;>0"),
        ([0, 4, 5], ["-", "+"], "short", "0-4;6+5;>1"),
        ([0, 4, 5], ["-", "+"], "checked", "0-4=6;6+4=0;6+5=1;1-5=6;>1"),
    ],
)
def test_solution_by_hand(digits: list[int], signs: list[str], style: str, solution: str) -> None:
    assert _work_out(digits, signs, 0.0, random.Random(0), style) == solution


def test_styles_differ_in_the_solution_alone() -> None:
    by_style = [
        Chains(seed=0, min_terms=3, max_terms=8, teacher_noise=0.5, style=style).example("train", 7)
        for style in ("steps", "short", "checked")
    ]
    assert len({(e.question, e.answer) for e in by_style}) == 1
    assert len({e.solution.partition(">")[2] for e in by_style}) == 1  # the same noise
    assert len({e.solution for e in by_style}) == 3


def test_answers_are_the_chain_modulo_ten() -> None:
    task = chains()
    for index in range(300):
        example = task.example("train", index)
        # Python's own arithmetic, whose modulo of a negative number is positive as well
        assert example.answer == str(eval(example.question.rstrip("=")) % 10)
        assert example.solution.endswith(f";>{example.answer}")
        assert 3 <= terms(example.question) <= 8


def test_lengths_are_drawn_evenly() -> None:
    task = chains(min_terms=2, max_terms=5)
    counts = [0] * 6
    for index in range(2000):
        counts[terms(task.example("train", index).question)] += 1
    assert counts[:2] == [0, 0]
    assert all(400 < count < 600 for count in counts[2:])


@pytest.mark.parametrize("length", [2, 3])
def test_no_problem_is_in_both_splits(length: int) -> None:
    task = chains(min_terms=length, max_terms=length)
    train = {task.example("train", index).question for index in range(2000)}
    held_out = {task.example("held_out", index).question for index in range(1000)}
    assert not train & held_out
    if length == 2:  # 200 chains of two digits exist, about an eighth of them held out
        assert 10 <= len(held_out) <= 45
        assert len(train) + len(held_out) == 200


def test_seeds_share_the_split_and_not_the_problems() -> None:
    first = [chains(seed=0).example("train", index).question for index in range(200)]
    second = [chains(seed=1).example("held_out", index).question for index in range(200)]
    assert not set(first) & set(second)
    assert first != [chains(seed=1).example("train", index).question for index in range(200)]


def test_a_problem_depends_on_its_index_alone() -> None:
    forward = [chains().example("train", index) for index in range(20)]
    backward = [chains().example("train", index) for index in reversed(range(20))]
    assert forward == backward[::-1]


def test_the_known_first_problem() -> None:
    """A run resumes on other machines and versions: the stream of problems must never change."""
    assert chains().example("train", 0).solution == "6-7=9;9-3=6;6-2=4;4+3=7;>7"


def test_noise_replaces_running_totals_and_carries_on() -> None:
    clean, noisy = chains(), chains(teacher_noise=0.2)
    wrong = steps = 0
    for index in range(1000):
        example = noisy.example("train", index)
        assert example.question == clean.example("train", index).question
        assert example.answer == clean.example("train", index).answer
        *work, last = example.solution.split(";")
        total = example.question[0]
        for step in work:
            expression, result = step.split("=")
            assert expression[0] == total
            wrong += result != str(eval(expression) % 10)
            steps, total = steps + 1, result
        assert last == f">{total}"
    # a random digit is the right one in a tenth of the cases
    assert wrong / steps == pytest.approx(0.2 * 0.9, abs=0.03)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("{work}>{answer}", 1.0),
        (">{answer}", 1.0),
        ("nonsense>{answer} ", 1.0),
        ("{work}>{wrong}", 0.0),
        ("{work}>{answer}{answer}", 0.0),
        ("{answer}", 0.0),
        ("{work}>", 0.0),
        ("", 0.0),
        (">{wrong}>{answer}", 0.0),
        (">{answer}>", 0.0),
        (">{answer};", 0.0),
    ],
)
def test_reward_of_a_response(completion: str, reward: float) -> None:
    task = chains()
    for index in range(5):
        example = task.example("held_out", index)
        answer, wrong = example.answer, str((int(example.answer) + 1) % 10)
        work = example.solution.partition(">")[0]
        assert task.reward("held_out", index, completion.format(work=work, answer=answer, wrong=wrong)) == reward


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_terms": 5, "max_terms": 4}, "min_terms = 5, max_terms = 4"),
        ({"min_terms": 1}, "min_terms = 1"),
        ({"teacher_noise": 1.5}, "teacher_noise = 1.5"),
    ],
)
def test_bad_fields_are_named(changed: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        chains(**changed)
