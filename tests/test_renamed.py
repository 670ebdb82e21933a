"""Names of earlier versions: what a user writes is rejected with the new name, what an earlier run wrote is read."""

import json
from pathlib import Path

import pytest

from recipes_for_tests import coin_questions, tree, write_recipe
from steadyrl.cli import main
from steadyrl.recipe import RecipeError, load, resolve
from steadyrl.renamed import FIELDS, translate_inputs
from steadyrl.report.reading import last_ledger, read_run
from steadyrl.run.logs import MetricsLog


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold": {"threads": 1}}, "hold: unknown key; it is now called `runtime`"),
        ({"scoring": {"workers": 2}}, "scoring: unknown key; it is now called `verifier`"),
        ({"sinks": ["wandb"]}, "sinks: unknown key; it is now called `trackers`"),
        ({"task": {"score": "own.py:f"}}, "task.score: unknown key; it is now called `task.reward`"),
        ({"task": {"min_score": 0.5}}, "task.min_score: unknown key; it is now called `task.min_reward`"),
        ({"objective": {"name": "composed", "ratio": "discrepancy"}}, "'mismatch', 'staleness' or 'none'"),
    ],
)
def test_a_recipe_with_an_old_name_is_rejected_with_the_new_one(changes: dict, message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        resolve(tree(**changes), source="recipe.toml")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--hold.threads", "--hold.threads: unknown flag; it is now called --runtime.threads"),
        ("--scoring.time-limit=3", "--scoring.time-limit: unknown flag; it is now called --verifier.time_limit"),
        ("--task.score", "--task.score: unknown flag; it is now called --task.reward"),
    ],
)
def test_a_flag_with_an_old_name_is_rejected_with_the_new_one(tmp_path: Path, flag: str, message: str, capfd) -> None:
    assert main(["train", str(write_recipe(tmp_path)), flag, "1"]) == 2
    assert message in capfd.readouterr().err


def before(recipe: dict) -> dict:
    """A resolved recipe as an earlier version wrote it."""
    old = json.loads(json.dumps(recipe))
    for name, new in FIELDS.items():
        section, field = (old["task"], "task.") if name.startswith("task.") else (old, "")
        if new.removeprefix(field) in section:
            section[name.removeprefix(field)] = section.pop(new.removeprefix(field))
    return old


def test_the_recipe_of_an_earlier_run_is_read_as_it_was_meant(tmp_path: Path) -> None:
    objective = {"name": "composed", "ratio": "mismatch"}
    task = coin_questions(tmp_path)
    new = resolve(tree(task=task, objective=objective, verifier={"workers": 3}), source="recipe.toml")
    old = before(new.model_dump(mode="json"))
    old["objective"]["ratio"] = "discrepancy"
    assert {"hold", "scoring", "sinks"} <= old.keys()
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(old))
    assert load(path) == new
    assert new.task.reward == task["reward"]


def test_the_digests_of_an_earlier_run_count_for_what_they_were_of() -> None:
    old = {"task.score: own.py": "a", "the rows of task.path": "b", "model.path: config.json": "c"}
    assert translate_inputs(old) == {
        "task.reward: own.py": "a",
        "the rows of task.path": "b",
        "model.path: config.json": "c",
    }


def test_the_files_of_an_earlier_run_are_shown_by_the_names_of_today(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(tree()))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "seconds/scoring": 2.0}\n{"step": 2, "seconds/logprobs": 3.0}\n'
    )
    ledger = [{"step": 1, "factor": name, "split": "all", "bucket": "all"} for name in ("discrepancy", "product")]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    found = read_run(tmp_path)
    assert found.steps.total("seconds/logprobs") == 5.0
    assert "seconds/scoring" not in found.steps.names
    assert list(last_ledger(found.ledger)["all", "all"]) == ["mismatch", "product"]


def test_a_metric_with_an_old_name_is_rejected_with_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown seconds/scoring \(now seconds/logprobs\); document it"):
        MetricsLog(tmp_path / "metrics.jsonl").log(1, {"seconds/scoring": 1.0})
