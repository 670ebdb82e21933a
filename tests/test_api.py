"""The front door, as a notebook or a sweep uses it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steadyrl
from recipes_for_tests import coin_questions, write_recipe
from steadyrl import Recipe, Step, evaluate, load, resume, train
from steadyrl.errors import UserError
from steadyrl.recipe import RecipeError

QUIET = {"evaluate": {"every": 0, "prompts": 4}, "checkpoints": {"every": 100}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def finished(home: Path) -> tuple[steadyrl.Record, list[Step], list[list[dict]]]:
    """A run of three steps with one learning rate changed, and what its callbacks were told."""
    steps: list[Step] = []
    rows: list[list[dict]] = []
    recipe = write_recipe(home, task=coin_questions(home), steps=9, **QUIET)
    record = train(
        recipe,
        run=home / "run",
        steps=3,
        optimizer={"learning_rate": 2e-3},
        on_step=steps.append,
        on_evaluation=rows.append,
    )
    return record, steps, rows


def test_a_run_is_returned_with_its_numbers(finished) -> None:
    record, _, _ = finished
    assert [step.number for step in record.steps] == [1, 2, 3]
    assert {row["step"] for row in record.evaluations} == {0, 3}
    assert record.report.is_file()
    assert record.model == record.path / "checkpoints" / "step-000003" / "model"
    kept = json.loads((record.path / "recipe.json").read_text())
    assert (kept["steps"], kept["optimizer"]["learning_rate"]) == (3, 2e-3)
    assert kept["optimizer"]["betas"] == [0.9, 0.95]  # the other fields of the section are as they were


def test_callbacks_are_told_what_is_written_down(finished) -> None:
    record, steps, rows = finished
    assert [step.metrics for step in steps] == [
        {name: value for name, value in row.items() if name != "step"} for row in record.metrics
    ]
    assert [step.reward for step in steps] == [row["reward/mean"] for row in record.metrics]
    assert all(step.mismatch is not None and step.mismatch >= 0.0 for step in steps)
    assert [row for part in rows for row in part] == record.evaluations


def test_a_saved_run_can_be_evaluated_with_other_settings(finished) -> None:
    record, _, _ = finished
    rows = evaluate(record.path, evaluate={"prompts": 3})
    assert {(row["mode"], row["prompts"]) for row in rows} == {("sampled", 3), ("greedy", 3)}


def test_a_saved_model_is_loaded_with_its_tokenizer(finished) -> None:
    record, _, _ = finished
    policy = load(record.model)
    logits = policy.model(input_ids=torch.tensor([[3, 4]])).logits
    assert logits.shape[-1] == policy.model.config.get_text_config().vocab_size
    assert policy.tokenizer.convert_tokens_to_ids("7") in range(logits.shape[-1])


def test_a_run_that_was_asked_to_stop_is_resumed_to_the_same_numbers(home: Path, finished) -> None:
    steps: list[Step] = []
    stopped = train(
        home / "recipe-under-test.json",
        run=home / "stopped",
        steps=3,
        optimizer={"learning_rate": 2e-3},
        on_step=steps.append,
        stop_asked=lambda: len(steps) == 2,
    )
    assert [step.number for step in stopped.steps] == [1, 2]
    assert (stopped.taken, stopped.last_step) == (2, 2)
    again = resume(home / "stopped")
    assert (again.taken, again.last_step) == (1, 3)
    timed = ("seconds/", "throughput/", "memory/")
    assert [{k: v for k, v in row.items() if not k.startswith(timed)} for row in again.metrics] == [
        {k: v for k, v in row.items() if not k.startswith(timed)} for row in finished[0].metrics
    ]


def test_a_run_directory_is_never_overwritten(finished, home: Path) -> None:
    with pytest.raises(UserError, match=r"exists already|already exists"):
        train(home / "recipe-under-test.json", run=finished[0].path)


def test_a_field_that_there_is_not_is_named_with_what_is_near() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.lerning_rate: unknown key; did you mean `learning_rate`"):
        Recipe.load("smoke").replace(optimizer={"lerning_rate": 1.0})


def test_another_objective_takes_the_place_of_the_section() -> None:
    recipe = Recipe.load("demo").replace(objective={"name": "grpo"}, seed=3)
    assert (recipe.objective.name, recipe.seed) == ("grpo", 3)
    assert Recipe.load("demo").replace() == Recipe.load("demo")


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, steadyrl; steadyrl.Recipe.load('demo'); print('torch' in sys.modules, sorted(steadyrl.__all__))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("False ")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tran'"):
        steadyrl.tran  # noqa: B018
