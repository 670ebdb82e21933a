"""A run whose rewards come from the user's own function: from the recipe to the files of the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from recipes_for_tests import coin_questions, command, train, tree, write_recipe
from steadyrl.recipe import load
from steadyrl.run.logs import read_jsonl


def write_toml(folder: Path, **changes: Any) -> Path:
    """The tiny recipe as people write it."""

    def lines(values: Mapping[str, Any], above: str = "") -> list[str]:
        return [
            line
            for name, value in values.items()
            for line in (
                lines(value, f"{above}{name}.")
                if isinstance(value, dict) and value
                else [f"{above}{name} = {json.dumps(value)}"]
            )
        ]

    path = folder / "recipe.toml"
    path.write_text("\n".join(lines(tree(**changes))))
    return path


FEW = {"steps": 1, "evaluate": {"every": 0, "prompts": 4}}
PARTS = """
def reward(prompt, completion, prompt_text, finish_reason, token_ids):
    whole = prompt_text.endswith(prompt) and finish_reason in ("stop", "length") and len(token_ids) > 0
    coin = float(sum(map(ord, completion)) % 2)
    return {"score": coin, "whole": whole, "mean": 7.0, "seen": "text", "odd name": 0.25}
"""


def test_parts_of_a_reward_are_metrics(tmp_path: Path) -> None:
    run = train(tmp_path, task=coin_questions(tmp_path, reward=PARTS), **FEW)
    (row,) = read_jsonl(run / "metrics.jsonl")
    assert (row["reward/whole"], row["reward/mean_part"], row["reward/odd_name"]) == (1.0, 7.0, 0.25)
    assert 0.0 < row["reward/mean"] < 1.0
    assert "reward/seen" not in row
    for kept in read_jsonl(run / "rollouts.jsonl"):
        parts = {name: value for name, value in kept.items() if name.startswith("reward/")}
        assert parts == {"reward/whole": 1.0, "reward/mean_part": 7.0, "reward/odd_name": 0.25}


def test_a_reward_beyond_float32_is_a_failure_that_is_named(tmp_path: Path) -> None:
    body = "def reward(prompt, completion):\n    return -1e39 if sum(map(ord, completion)) % 16 == 2 else 1.0\n"
    run = train(tmp_path, task=coin_questions(tmp_path, reward=body), **FEW, verifier={"max_failures": 0.9})
    (row,) = read_jsonl(run / "metrics.jsonl")
    assert row["reward/failures"] > 0
    assert row["reward/mean"] == 1.0
    assert row["update/skipped"] == 0
    reasons = {failure["reason"] for failure in read_jsonl(run / "failures.jsonl")}
    assert reasons == {"returned -1e+39, which is not finite in float32"}


def test_the_recipes_folder_is_the_working_directory_of_the_run_and_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "recipes"
    place.mkdir()
    (place / "table").write_text("1")
    body = "def reward(prompt, completion):\n    return float(open('table').read()) * (sum(map(ord, completion)) % 2)\n"
    recipe = write_toml(place, task=coin_questions(tmp_path, reward=body), **FEW | {"steps": 2})
    run = tmp_path / "run"
    assert command("train", recipe, "--run", run, "--steps", "1") == 0
    kept = json.loads((run / "recipe.json").read_text())
    assert kept["verifier"]["folder"] == str(place)
    (run / "recipe.json").write_text(json.dumps(kept | {"steps": 2}))
    monkeypatch.chdir(tmp_path)
    assert command("resume", run) == 0
    assert all(row["reward/failures"] == 0 for row in read_jsonl(run / "metrics.jsonl"))


def test_only_a_function_of_ones_own_has_a_folder(tmp_path: Path) -> None:
    own = coin_questions(tmp_path)
    assert load(write_toml(tmp_path)).verifier.folder is None
    assert load(write_toml(tmp_path, task=own)).verifier.folder == str(tmp_path)
    assert load(write_recipe(tmp_path, task=own)).verifier.folder is None  # JSON is resolved: nothing is added
    assert load(write_toml(tmp_path, task=own, verifier={"folder": "/elsewhere"})).verifier.folder == "/elsewhere"


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_script_as_the_reward_file_ends_with_status_2(tmp_path: Path, flags: list, capfd) -> None:
    body = "import sys\ndef reward(prompt, completion):\n    return 1.0\nprint(reward('', ''))\nsys.exit()\n"
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path, reward=body), **FEW)
    assert command("train", recipe, "--run", tmp_path / "run", *flags) == 2
    out, err = capfd.readouterr()
    assert "own.py:reward': loading it called sys.exit(0)" in err
    assert "1.0" not in out.splitlines()  # what the script prints is not the run's own output
    assert not (tmp_path / "run").exists()


def test_an_environment_variable_that_is_not_set_is_named(tmp_path: Path, capfd) -> None:
    recipe = write_recipe(tmp_path, task=coin_questions(tmp_path), verifier={"environment": ["NO_SUCH_KEY"]}, **FEW)
    assert command("train", recipe, "--run", tmp_path / "run") == 2
    assert "verifier.environment names 'NO_SUCH_KEY', which is not set" in capfd.readouterr().err
