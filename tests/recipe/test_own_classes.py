"""Classes of the user's own: they train, and the run is shown, resumed and evaluated as any other."""

import json
from pathlib import Path

import pytest

from recipes_for_tests import command, comparable, tree
from steadyrl.options.own import OwnCodeError
from steadyrl.recipe import RecipeError, load, resolve
from steadyrl.recipe.building import arguments, build
from steadyrl.run.logs import read_jsonl

EXAMPLES = Path(__file__).parents[2] / "examples"

CODE = '''
from dataclasses import dataclass
from steadyrl.engine.local import LocalEngine
from steadyrl.options.bounds import PositiveFloat


class Counting(LocalEngine):
    """The embedded engine, which also says something of itself."""

    def __init__(self, model, *, end_tokens: set[int], label: str = "mine", max_sequences: int = 256) -> None:
        super().__init__(model, end_tokens=end_tokens, max_sequences=max_sequences)
        self._facts = {**self._facts, "engine": label}


@dataclass(frozen=True, kw_only=True)
class Scaled:
    factor: PositiveFloat = 1.0

    def __call__(self, rewards, *, known, normalise):
        return self.factor * (rewards - rewards.mean(dim=1, keepdim=True))


def centred(rewards, *, known, normalise):
    return rewards - rewards.mean(dim=1, keepdim=True)


class Empty:
    pass
'''
SECTIONS = {
    "objective": {"name": "root_is.py:RootIS", "weight_cap": 3.0},
    "task": {"kind": "reversal.py:Reversal", "max_digits": 4},
    "engine": {"kind": "own.py:Counting", "label": "ours", "max_sequences": 16},
    "advantage": {"name": "own.py:Scaled", "factor": 0.5},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a user's, with a recipe's neighbours."""
    (tmp_path / "own.py").write_text(CODE)
    for name in ("root_is.py", "reversal.py"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    return tmp_path


def recipe_file(folder: Path, **changes) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(tree(steps=2, checkpoints={"every": 1}) | changes))
    return path


@pytest.mark.parametrize("section", SECTIONS)
def test_a_run_with_a_class_of_ones_own(folder: Path, section: str, monkeypatch, capsys) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)  # the file is seen from the folder of the recipe
    path, run = recipe_file(folder, **{section: SECTIONS[section]}), folder / "run"
    assert command("train", path, "--dry-run") == 0
    assert command("train", path, "--run", run, report=True) == 0
    written, before = json.loads((run / "recipe.json").read_text()), comparable(run)
    own_file = next(iter(SECTIONS[section].values())).partition(":")[0]
    assert f"{section}: {own_file}" in written["seen"]
    page = (run / "report.html").read_text()
    assert all(str(value).rpartition(":")[2] in page for value in SECTIONS[section].values())
    assert command("show", run) == 0
    assert command("resume", run, "--checkpoint", "step-000001") == 0
    assert comparable(run) == before
    assert command("eval", run, "--evaluate.prompts", "4") == 0
    capsys.readouterr()
    (folder / own_file).write_text((folder / own_file).read_text() + "\n# changed\n")
    assert command("resume", run, "--checkpoint", "step-000001") == 2
    assert f"{section}: {own_file}" in capsys.readouterr().err


def test_the_class_is_told_what_the_recipe_says(folder: Path) -> None:
    recipe = load(recipe_file(folder, objective=SECTIONS["objective"], advantage="own.py:centred"))
    objective = build(recipe.objective)
    assert (type(objective).__name__, objective.weight_cap) == ("RootIS", 3.0)
    assert build(recipe.advantage).__name__ == "centred"
    assert load(recipe_file(folder, **json.loads(recipe.model_dump_json()))) == recipe


def test_an_engine_of_ones_own_samples(folder: Path) -> None:
    run = folder / "run"
    assert command("train", recipe_file(folder, engine=SECTIONS["engine"]), "--run", run) == 0
    assert json.loads((run / "engine.json").read_text())["engine"] == "ours"
    assert {row["precision"] for row in read_jsonl(run / "eval.jsonl")} == {"Counting-native", "native"}


def test_an_advantage_of_ones_own_moves_the_policy(folder: Path) -> None:
    run = folder / "run"
    assert command("train", recipe_file(folder, advantage=SECTIONS["advantage"]), "--run", run) == 0
    rewarded = [row for row in read_jsonl(run / "rollouts.jsonl") if row["advantage"]]
    assert all(abs(row["advantage"]) <= 0.5 for row in rewarded)


@pytest.mark.parametrize(
    ("section", "told", "message"),
    [
        ("objective", {"name": "root_is.py:RootIS", "weight_cap": -1}, "objective.weight_cap: Input should be greater"),
        (
            "objective",
            {"name": "root_is.py:RootIS", "weight_cup": 1},
            "weight_cup: unknown key; did you mean",
        ),
        ("objective", {"name": "own.py:Empty"}, "Empty must be a subclass of steadyrl.algo.Objective"),
        ("objective", {"name": "own.py:Nothing"}, "there is no Nothing in it; it has "),
        ("objective", {"name": "none.py:Nothing"}, "there is no such file"),
        ("objective", {"name": "no_such_module:Nothing"}, "there is no Python module no_such_module"),
        ("objective", {"name": "own.py:centred"}, "centred is no class"),
        ("task", {"kind": "own.py:Empty"}, "Empty lacks size, example, reward, right_responses, final_answer"),
        ("task", {"kind": "reversal.py:Reversal", "min_digits": 9}, "min_digits = 9 is above max_digits = 6"),
        ("task", {"kind": "reversal.py:Reversal", "seed": 3}, "task.seed: unknown key"),
        ("engine", {"kind": "own.py:Empty"}, "Empty lacks submit, collect, update_weights, sleep, wake, close"),
        ("advantage", {"name": "own.py:Scaled", "factor": True}, "advantage.factor: must be a number (found true)"),
        ("advantage", {"name": "own.py:centred", "factor": 1}, "advantage.factor: unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_field(folder: Path, section: str, told: dict, message: str) -> None:
    recipe = load(recipe_file(folder, **{section: told}))
    with pytest.raises((RecipeError, OwnCodeError)) as error:
        arguments(getattr(recipe, section))
    assert message in str(error.value)


def test_a_module_that_is_installed_may_be_named() -> None:
    recipe = resolve(tree(objective="steadyrl.algo.objectives.ppo:GRPO"), source="test")
    assert type(build(recipe.objective)).__name__ == "GRPO"
