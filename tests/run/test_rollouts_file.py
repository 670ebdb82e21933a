import json
from pathlib import Path

import pytest

from recipes_for_tests import coin_questions, command, train, write_recipe
from steadyrl.run.logs import read_jsonl
from steadyrl.run.rows import LONGEST, MOST_FAILED, chosen_groups, shortened

PARTS = {"prompts": 4, "responses": 3, "max_new_tokens": 6}
SMALL = {"rollout": PARTS, "evaluate": {"prompts": 4}, "steps": 3}


def test_a_run_keeps_what_it_trained_on(tmp_path: Path) -> None:
    run = train(tmp_path, task=coin_questions(tmp_path), **SMALL)
    rows, steps = read_jsonl(run / "rollouts.jsonl"), read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1] * 6 + [2] * 6 + [3] * 6
    assert [row["sample"] for row in rows] == [0, 1, 2] * 6
    assert len({(row["step"], row["problem"]) for row in rows}) == 6
    questions = {json.loads(line)["question"] for line in (tmp_path / "questions.jsonl").read_text().splitlines()}
    assert {row["prompt"] for row in rows} <= questions
    for at in range(0, len(rows), 3):
        group = rows[at : at + 3]
        mean = sum(row["reward"] for row in group) / 3
        for row in group:
            assert row["reward"] == sum(map(ord, row["response"])) % 2
            assert row["advantage"] == pytest.approx(row["reward"] - mean)
            assert row["finish_reason"] == ("length" if row["tokens"] == 6 else row["finish_reason"])
            assert row["policy_version"] == steps[row["step"] - 1]["policy_version"]
            assert (row["left_out"], row["failure"]) == (0, None)


def test_how_many_and_how_often_is_the_recipes(tmp_path: Path) -> None:
    some = train(tmp_path, "some", task=coin_questions(tmp_path), rollouts={"groups": 1, "every": 2}, **SMALL)
    assert [row["step"] for row in read_jsonl(some / "rollouts.jsonl")] == [1] * 3 + [3] * 3
    none = train(tmp_path, "none", task=coin_questions(tmp_path), rollouts={"groups": 0}, **SMALL)
    assert read_jsonl(none / "rollouts.jsonl") == []


def test_a_resumed_run_keeps_the_same(tmp_path: Path) -> None:
    run = train(tmp_path, task=coin_questions(tmp_path), checkpoints={"every": 1, "keep": 9}, **SMALL)
    straight = (run / "rollouts.jsonl").read_bytes()
    command("resume", run, "--checkpoint", "step-000001")
    assert (run / "rollouts.jsonl").read_bytes() == straight


@pytest.mark.parametrize(
    ("step", "prompts", "groups", "every", "kept"),
    [
        (1, 4, 2, 1, [0, 1]),
        (2, 4, 2, 1, [2, 3]),
        (3, 4, 2, 1, [0, 1]),
        (2, 3, 2, 1, [0, 2]),
        (2, 4, 2, 3, []),
        (4, 4, 2, 3, [2, 3]),
        (5, 2, 9, 1, [0, 1]),
        (1, 4, 0, 1, []),
    ],
)
def test_the_kept_groups_move_on(step: int, prompts: int, groups: int, every: int, kept: list[int]) -> None:
    assert chosen_groups(step, prompts, groups=groups, every=every) == kept


BREAKS = """
def reward(prompt, completion):
    if "7" in prompt or not completion:
        raise ValueError("cannot read " + completion)
    return {"score": 0.5, "length": float(len(completion))} if False else 0.5
"""


def test_a_response_that_broke_the_verifier_can_be_found(tmp_path: Path) -> None:
    limits = {"max_failures": 1.0}
    run = train(
        tmp_path, task=coin_questions(tmp_path, reward=BREAKS), verifier=limits, rollouts={"groups": 0}, **SMALL
    )
    rows, steps = read_jsonl(run / "rollouts.jsonl"), read_jsonl(run / "metrics.jsonl")
    assert rows
    for row in rows:
        assert row["failure"].startswith("raised ValueError: cannot read ")
        assert row["failure"].endswith(row["response"])
        assert (row["reward"], row["advantage"]) == (None, 0.0)
    assert len(rows) == sum(step["reward/failures"] for step in steps)
    assert len(rows) == sum(row["responses"] for row in read_jsonl(run / "failures.jsonl"))


# right as it is tried, and on the evaluation's held-out questions, which come next; then it breaks
LATER = """
asked = 0

def reward(prompt, completion):
    global asked
    asked += 1
    return 1.0 if asked < 6 else 1 / 0
"""


# of the solution alone it has one: it is tried before the run
NO_VERDICT = """
def reward(prompt, completion, answer):
    if completion != answer:
        raise ValueError('no verdict')
    return 1.0
"""


def test_the_run_that_stops_over_failures_has_kept_them(tmp_path: Path) -> None:
    more = {"rollout": PARTS | {"prompts": 16}, "evaluate": {"prompts": 1}, "steps": 1}
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path, reward=LATER), **more)
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    rows = read_jsonl(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 6 + MOST_FAILED
    assert {row["failure"] for row in rows} == {"raised ZeroDivisionError: division by zero"}
    assert read_jsonl(tmp_path / "run" / "failures.jsonl")[0]["responses"] == 48


def test_the_evaluation_that_stops_a_run_has_kept_them(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path, reward=NO_VERDICT), **SMALL)
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    rows = read_jsonl(tmp_path / "run" / "samples.jsonl")
    assert [row["failure"] for row in rows] == ["raised ValueError: no verdict"] * 4
    assert len(read_jsonl(tmp_path / "run" / "eval.jsonl")) == 1


def test_evaluations_keep_what_has_no_reward(tmp_path: Path) -> None:
    limits = {"max_failures": 1.0}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=NO_VERDICT), verifier=limits, **SMALL | {"steps": 0})
    rows = read_jsonl(run / "samples.jsonl")
    assert [(row["reward"], row["failure"]) for row in rows] == [(None, "raised ValueError: no verdict")] * 4
    assert [row["accuracy"] for row in read_jsonl(run / "eval.jsonl")] == [None] * 4


@pytest.mark.parametrize("letter", ["a", "π", "数", "🙂", "\ud800"])
def test_long_texts_are_cut_in_the_middle(letter: str) -> None:
    size = len(letter.encode("utf-8", "surrogatepass"))
    whole = "<" + letter * (LONGEST // size - 2) + ">"
    assert shortened(whole).text == whole
    cut = shortened("<" + letter * 9000 + ">")
    kept = cut.text.replace(f"[… {cut.left_out} characters left out …]", "")
    assert cut.text[0] + cut.text[-1] == "<>"
    assert len(kept) + cut.left_out == 9002
    assert LONGEST - 2 * size <= len(kept.encode("utf-8", "surrogatepass")) <= LONGEST


def test_a_short_cut_by_hand() -> None:
    assert shortened("abcdefgh", 4).text == "ab[… 4 characters left out …]gh"
    assert shortened("abcd", 4).left_out == 0
