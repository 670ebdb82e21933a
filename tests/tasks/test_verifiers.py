from pathlib import Path

import pytest

from steadyrl.tasks.base import Split, TaskError
from steadyrl.tasks.math_answers import math_verify_score
from steadyrl.tasks.own_score import load_function
from steadyrl.tasks.questions import Questions


@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        ("0.5", r"so it is $\frac{1}{2}$.", 1.0),
        ("0.5", r"\boxed{\frac{2}{4}}", 1.0),
        (r"$\frac{1}{2}$", "1/2", 1.0),
        (r"\frac{1}{2}", "0.6", 0.0),
        (r"2\pi", r"$\pi + \pi$", 1.0),
        ("x^2+2x+1", "$(x+1)^2$", 1.0),
        ("x^2+2x+1", "$(x-1)^2$", 0.0),
        ("1,000", "the result is 1000", 1.0),
        ("She sold 48/2 = 24.\n#### 72", "The answer is 72", 1.0),
        ("She sold 48/2 = 24.\n#### 72", "The answer is 24", 0.0),
        ("-7", "-7", 1.0),
        ("-7", "7", 0.0),
        ("42", "37+5=42", 1.0),
        ("42", "", 0.0),
        ("42", "I do not know", 0.0),
    ],
)
def test_math_verify(answer: str, completion: str, reward: float) -> None:
    assert math_verify_score(answer, completion) == reward


def test_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(TaskError, match="cannot read the answer 'work ####'"):
        math_verify_score("work ####", "5")


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\n"
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Rule:\n    weight: float\n"
        "def score(prompt, completion):\n    return Rule(0.5).weight * (completion == prompt)\n"
    )
    function = load_function(file, "score")
    assert function("a", "a") == 0.5
    assert function("a", "b") == 0.0


def test_a_function_that_asks_for_the_reference_gets_it(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"q": "a", "a": "b"}\n{"q": "c", "a": "d"}\n')
    (tmp_path / "mine.py").write_text(
        "def compared(prompt, completion, answer=''):\n    return float(completion == prompt + answer)\n"
        "def alone(prompt, completion):\n    return float(completion == prompt)\n"
    )
    for name, right in (("compared", "ab"), ("alone", "a")):
        pairs = Questions(
            path=str(tmp_path / "pairs.jsonl"),
            split="",
            question_column="q",
            answer_column="a",
            score=f"{tmp_path / 'mine.py'}:{name}",
            held_out=1,
        )
        split: Split = "train" if pairs.example("train", 0).question == "a" else "held_out"
        assert [pairs.score(split, 0, completion) for completion in (right, "x")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("mine.py:scor", "no such function there; it has score"),
        ("mine.py:number", "no such function there"),
        ("other.py:score", "other.py:score': there is no such file"),
        ("mine.txt:score", "its name must end in .py"),
        ("mathverify", "neither `math_verify` nor `file.py:function`"),
        ("mine.py:", "neither `math_verify` nor `file.py:function`"),
    ],
)
def test_mistakes_about_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("number = 3\ndef score(prompt, completion):\n    return 1.0\n")
    Path("pairs.jsonl").write_text('{"q": "1", "a": "1"}\n{"q": "2", "a": "2"}\n')
    with pytest.raises(TaskError) as caught:
        Questions(path="pairs.jsonl", split="", question_column="q", answer_column="a", score=score, held_out=1)
    assert message in str(caught.value)
