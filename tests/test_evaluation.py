import json
from pathlib import Path

import pytest

from recipes_for_tests import coin_questions, command, train, tree, write_recipe
from steadyrl.engine.local import LocalEngine
from steadyrl.order import seed_of
from steadyrl.recipe import RecipeError, resolve
from steadyrl.run.logs import read_jsonl
from steadyrl.tasks.base import TaskError
from steadyrl.tasks.chains import Chains
from steadyrl.tasks.questions import Questions
from steadyrl.tasks.rows import Rows


def test_what_a_response_answers() -> None:
    chains = Chains(seed=0, min_terms=2, max_terms=2, teacher_noise=0.0)
    assert [chains.final_answer(text) for text in ("1+2=3;>3", "1+2=3;", "")] == ["3", None, None]
    rows = Rows(seed=0, width=3, min_rows=1, max_rows=2, teacher_noise=0.0)
    assert rows.final_answer("b+136a+140") == "a+140"


PARTIAL = "def reward(prompt, completion):\n    return 0.9 if sum(map(ord, completion)) % 2 else 0.4\n"
SMALL = {"rollout": {"prompts": 4, "responses": 2, "max_new_tokens": 6}, "steps": 1}


def test_partial_credit_is_told_beside_an_accuracy_of_0(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    evaluate = {"prompts": 8, "samples": 4}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=PARTIAL), evaluate=evaluate, **SMALL)
    out, err = capfd.readouterr()
    for row in read_jsonl(run / "eval.jsonl"):
        assert row["accuracy"] == row.get("pass@2", 0.0) == row.get("maj@4", 0.0) == 0.0
        assert row["reward_low"] <= row["reward"] <= row["reward_high"]
        assert 0.4 <= row["reward"] <= row["reward_max"]
        assert ("pass@4" in row) == (row["mode"] == "sampled")
    assert err.count("no response to the held_out problems has a reward of at least task.correct_at = 1") == 1
    assert "reward 0." in out
    assert command("eval", run) == 0
    assert "pass@4 0.000" in capfd.readouterr().out


def test_what_is_right_is_the_recipes(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    evaluate = {"prompts": 8, "samples": 4}
    run = train(tmp_path, task=coin_questions(tmp_path, reward=PARTIAL, correct_at=0.9), evaluate=evaluate, **SMALL)
    first = read_jsonl(run / "eval.jsonl")[0]
    assert first["reward"] == pytest.approx(0.4 + 0.5 * first["accuracy"])
    assert first["accuracy"] <= first["pass@2"] <= first["pass@4"] <= 1.0
    assert "no response" not in capfd.readouterr().err


def further(folder: Path, count: int, *, first: int = 100) -> dict:
    path = folder / "further.jsonl"
    rows = [{"ask": f"{n}+1=", "answer": str(n)} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "hard", "path": str(path), "question_column": "ask"}


def test_further_sets_are_evaluated_beside_the_held_out_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    task, alone = coin_questions(tmp_path), {"prompts": 8}
    both = alone | {"sets": [further(tmp_path, 5)]}
    run = train(tmp_path, "both", task=task, evaluate=both, **SMALL)
    rows = read_jsonl(run / "eval.jsonl")
    assert [(row["set"], row["prompts"]) for row in rows if row["step"] == 0] == [("held_out", 8), ("hard", 5)] * 4
    assert " hard 0." in capfd.readouterr().out
    plain = read_jsonl(train(tmp_path, "alone", task=task, evaluate=alone, **SMALL) / "eval.jsonl")
    assert [row for row in rows if row["set"] == "held_out"] == plain
    fewer = both["sets"][0] | {"prompts": 2}
    run = train(tmp_path, "fewer", task=task, evaluate=alone | {"sets": [fewer]}, report=True, **SMALL)
    assert {row["prompts"] for row in read_jsonl(run / "eval.jsonl") if row["set"] == "hard"} == {2}
    assert "sampled, fp8, hard" in (run / "report.html").read_text()


def test_a_question_of_a_further_set_is_not_trained_on(tmp_path: Path) -> None:
    fields = {"path": coin_questions(tmp_path)["path"], "held_out": 16}
    plain = Questions(**fields)
    asked = [plain.example("train", index).question for index in range(3)]
    path = tmp_path / "shared.jsonl"
    path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in asked))
    columns = {"question_column": "question", "answer_column": "answer"}
    other = {"name": "shared", "path": str(path), "subset": None, "split": "train", **columns}
    both = Questions(**fields, sets=[other])
    assert [both.example("shared", index).question for index in range(3)] == asked
    assert both.size("train") == 48 - 3
    assert not {both.example("train", index).question for index in range(45)} & set(asked)
    everything = Path(fields["path"]).read_text()
    path.write_text(everything)
    with pytest.raises(TaskError, match="none is left"):
        Questions(**fields, sets=[other])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([{"name": "train", "path": "x.jsonl"}], "name = 'train' is reserved for the task's own problems"),
        ([{"name": "a", "path": "x"}, {"name": "a", "path": "y"}], "the name 'a' occurs twice"),
        ([{"name": "a b", "path": "x"}], "String should match pattern"),
        ([{"path": "x"}], "Field required"),
    ],
)
def test_sets_that_cannot_be_told_apart_are_refused(tmp_path: Path, sets: list, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(tree(task=coin_questions(tmp_path), evaluate={"sets": sets}), source="test")


def test_sets_are_for_questions_only() -> None:
    with pytest.raises(RecipeError, match=r'only task.kind = "questions" can verify; the task is "chains"'):
        resolve(tree(evaluate={"sets": [{"name": "a", "path": "x.jsonl"}]}), source="test")


def test_a_set_that_has_too_few_problems_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    sets = [further(tmp_path, 3) | {"prompts": 4}]
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), evaluate={"prompts": 8, "sets": sets})
    assert command("train", recipe, "--dry-run") == 2
    told = capfd.readouterr().err
    assert "evaluate.sets, hard: prompts = 4, but the task has 3 hard problem(s). Use at most 3" in told


def test_evaluations_share_their_random_numbers_with_each_other_and_with_no_rollout(tmp_path, monkeypatch) -> None:
    seen: list[tuple[str, int]] = []
    submit = LocalEngine.submit

    def note(self, requests):
        seen.extend(("rollout" if one.responses == 4 else "evaluation", one.seed) for one in requests)
        submit(self, requests)

    monkeypatch.setattr(LocalEngine, "submit", note)
    train(tmp_path, task=coin_questions(tmp_path), steps=2, evaluate={"every": 1, "prompts": 4}, seed=7)
    asked = {kind: {seed for one, seed in seen if one == kind} for kind in ("rollout", "evaluation")}
    assert asked["evaluation"] == {seed_of(7, "evaluate")}
    assert asked["rollout"] == {seed_of(7, "rollout/1"), seed_of(7, "rollout/2")}
