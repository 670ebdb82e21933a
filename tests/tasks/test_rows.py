import random

import pytest

from steadyrl.tasks.base import TaskError
from steadyrl.tasks.rows import Rows, _worked_out


def rows(*, seed: int = 0, width: int = 4, min_rows: int = 2, max_rows: int = 5, teacher_noise: float = 0.0) -> Rows:
    return Rows(seed=seed, width=width, min_rows=min_rows, max_rows=max_rows, teacher_noise=teacher_noise)


@pytest.mark.parametrize(
    ("count", "sign", "digits", "lines"),
    [
        (2, "+", [1, 2, 3], ["b+136", "a+140"]),
        (1, "-", [3, 5, 9], ["a-327"]),
        (3, "-", [0, 0, 1], ["c-001", "b-001", "a-001"]),
        (1, "+", [9, 9, 9], ["a+987"]),
    ],
)
def test_rows_by_hand(count: int, sign: str, digits: list[int], lines: list[str]) -> None:
    assert _worked_out(count, sign, digits, 0.0, random.Random(0)) == lines


def test_a_solution_counts_its_labels_down_and_ends_with_the_answer() -> None:
    task, counts = rows(), set()
    for index in range(200):
        example = task.example("train", index)
        lines = [example.solution[i : i + 6] for i in range(0, len(example.solution), 6)]
        labels = example.question[0] + "".join(line[0] for line in lines)
        assert labels == "abcdef"[: len(labels)][::-1]
        assert {line[1] for line in lines} == {example.question[1]}
        assert lines[-1] == example.answer
        counts.add(len(lines))
    assert counts == {2, 3, 4, 5}


def test_no_problem_is_in_both_splits() -> None:
    task = rows(width=2, min_rows=1, max_rows=1)
    train = {task.example("train", index).question for index in range(3000)}
    held_out = {task.example("held_out", index).question for index in range(1000)}
    assert not train & held_out
    assert len(train) + len(held_out) == 200  # two signs, two digits
    assert 10 <= len(held_out) <= 45


def test_the_known_first_problem() -> None:
    """A run resumes on other machines and versions: the stream of problems must never change."""
    example = rows().example("train", 0)
    assert (example.question, example.answer) == ("e-7323", "a-7505")


def test_noise_replaces_digits_and_carries_on() -> None:
    clean, noisy = rows(), rows(teacher_noise=0.1)
    wrong = digits = 0
    for index in range(1000):
        example = noisy.example("train", index)
        assert (example.question, example.answer) == (
            clean.example("train", index).question,
            clean.example("train", index).answer,
        )
        above = example.question
        for start in range(0, len(example.solution), 6):
            line = example.solution[start : start + 6]
            before = 0
            for x, y in zip(above[2:], line[2:], strict=True):
                wrong += int(y) != (int(x) + before if line[1] == "+" else int(x) - before) % 10
                digits, before = digits + 1, int(y)
            above = line
    # a random digit is the right one in a tenth of the cases
    assert wrong / digits == pytest.approx(0.1 * 0.9, abs=0.01)


def test_reward() -> None:
    task = rows()
    for index in range(5):
        example = task.example("held_out", index)
        other = str((int(example.answer[-1]) + 1) % 10)
        for completion, reward in [
            (example.solution, 1.0),
            (example.solution[:-1] + other, 0.0),
            (example.solution + "0", 0.0),
            (example.solution[6:], 0.0),
            (example.solution + example.answer, 0.0),
            ("", 0.0),
            ("0" * (len(example.solution) - 6) + example.answer, 1.0),  # the rows between are not checked
        ]:
            assert task.reward("held_out", index, completion) == reward


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 1}, "width = 1"),
        ({"min_rows": 4, "max_rows": 3}, "min_rows = 4, max_rows = 3"),
        ({"max_rows": 26}, "max_rows = 26"),
        ({"teacher_noise": -0.1}, "teacher_noise = -0.1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        rows(**changed)
