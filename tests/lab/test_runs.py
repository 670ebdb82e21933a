"""What an arm is, and that a finished run is never made twice."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from labs_for_tests import ROOT

from steadyrl.cli import main as steadyrl
from steadyrl.recipe import RecipeError
from steadyrl_lab.__main__ import main
from steadyrl_lab.archive import ResultError, finished
from steadyrl_lab.figure import (
    Figure,
    arm_recipe,
    changed,
    cold_name,
    cold_recipe,
    load_figure,
)
from steadyrl_lab.report import page
from steadyrl_lab.result import measure
from steadyrl_lab.runs import run_figure


def test_another_kind_begins_its_section_anew() -> None:
    tree = {"objective": {"name": "minirl", "clip": False}, "update": {"replay": "R2", "minibatches": 2}}
    assert changed(tree, {"objective": {"name": "grpo"}, "update": {"replay": "none"}}) == {
        "objective": {"name": "grpo"},
        "update": {"replay": "none", "minibatches": 2},
    }
    assert changed(tree, {"objective": {"clip": True}})["objective"] == {"name": "minirl", "clip": True}


def test_the_global_batch_grows_with_n(lab: Path) -> None:
    figure = load_figure(lab, "pair")
    recipe = arm_recipe(lab, figure, "without", 3, model=Path("cold"))
    assert (recipe.rollout.prompts, recipe.update.minibatches, recipe.steps) == (16, 2, 2)  # 8 prompts a mini-batch
    assert (recipe.evaluate.every, recipe.seed, recipe.cold_start) == (1, 3, None)
    assert not recipe.objective.clip
    assert recipe.model.path == "cold"


def test_a_cold_start_is_the_regimes_the_figures_or_the_arms(lab: Path) -> None:
    path = lab / "figures" / "pair.toml"
    plain = path.read_text()
    path.write_text(plain.replace("[arms.with]", "[cold]\ncold_start = { batch = 16 }\n[arms.with]"))
    shared = load_figure(lab, "pair")
    path.write_text(path.read_text().replace("objective.clip = false }", "objective.clip = false }\ncold.steps = 7"))
    own = load_figure(lab, "pair")
    assert [cold_name(figure, "without") for figure in (shared, own)] == ["pair", "pair.without"]
    assert cold_name(own, "with") == "pair"
    starts = [cold_recipe(lab, figure, "without", 3).cold_start for figure in (shared, own)]
    assert [start.batch for start in starts if start] == [16, 16]
    path.write_text(plain)
    assert cold_name(load_figure(lab, "pair"), "with") == "quick"


@pytest.mark.slow
def test_a_lab_runs_once_resumes_and_refuses_a_changed_regime(lab: Path, capfd) -> None:
    call = ["--lab", str(lab), "run", "pair", "--jobs", "1"]
    assert main([*call, "--arms", "with"]) == 0
    assert list(finished(lab, load_figure(lab, "pair"))) == [("with", 3)]
    assert main(call) == 0
    said = capfd.readouterr().out
    assert said.count("cold start") == 1
    assert said.count("seed 3") == 2
    figure = load_figure(lab, "pair")
    one = finished(lab, figure)["with", 3]
    assert one.accuracy()[-1][0] == 4
    assert len(one.steps["reward/mean"]) == 2
    assert main(call) == 0
    assert f"every run asked for has its result in {lab / 'results'}" in capfd.readouterr().out

    text = page(lab)
    assert "2 of 2 runs" in text
    assert re.search(r"\| \[A pair\]\(#a-pair\) \| 0 of 1( \(1\))? \| 0 of 1( \(1\))? \|", text)
    assert "| C7 | clipping saves |" in text
    (lab / "docs" / "replication").mkdir(parents=True)
    (lab / "docs" / "replication" / "gone.svg").write_text("of a figure that is no more")
    assert main(["--lab", str(lab), "report", "--docs", str(lab / "docs")]) == 0
    assert [path.name for path in (lab / "docs" / "replication").iterdir()] == ["pair.svg"]
    assert (lab / "docs" / "replication.md").read_text() == text
    assert "clip" in (lab / "docs" / "replication" / "pair.svg").read_text()

    # killed after its first step: the result is the same, bit for bit, but for the seconds
    folder = lab / "runs" / "pair" / "with-3"
    shutil.rmtree(lab / "results")
    (folder / "result.json").unlink()
    for newest in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newest)
    capfd.readouterr()
    assert main(call) == 0
    assert replace(finished(lab, figure)["with", 3], seconds=one.seconds) == one

    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("learning_rate = 0.001", "learning_rate = 0.002"))
    for command in (call, ["--lab", str(lab), "report", "--docs", str(lab / "docs")]):
        assert main(command) == 2
        said = capfd.readouterr().err
        assert "arm with, seed 3: the stored run was made with another recipe" in said
        assert "own.optimizer.learning_rate" in said
    with pytest.raises(ResultError):
        run_figure(lab, figure, arms=[], seeds=[], jobs=1)


def test_a_changed_cold_start_is_not_taken_for_the_new_one(lab: Path, capfd) -> None:
    made = lab / "runs" / "cold" / "quick-3"
    (made / "checkpoints" / "step-000000" / "model").mkdir(parents=True)
    recipe = cold_recipe(lab, load_figure(lab, "pair"), "with", 3)
    (made / "recipe.json").write_text(recipe.model_dump_json())
    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("batch = 8", "batch = 16"))
    assert main(["--lab", str(lab), "run", "pair"]) == 2
    assert "quick-3 holds a run of another recipe; delete it" in capfd.readouterr().err


def test_a_changed_arm_is_refused_before_anything_is_run(lab: Path, capfd) -> None:
    begun = lab / "runs" / "pair" / "without-3"
    begun.mkdir(parents=True)
    recipe = arm_recipe(lab, load_figure(lab, "pair"), "without", 3, model=Path("cold"))
    (begun / "recipe.json").write_text(recipe.model_dump_json())
    assert main(["--lab", str(lab), "run", "pair"]) == 2
    assert "without-3 holds a run of another recipe; delete it" in capfd.readouterr().err
    assert not (lab / "runs" / "cold").exists()


def test_what_fails_does_not_hold_up_the_rest(lab: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def train(recipe, folder: Path) -> int:
        if folder.name == "quick-3":  # the cold start of one seed
            return 1
        if recipe.steps == 0:
            (folder / "checkpoints" / "step-000000" / "model").mkdir(parents=True)
            return 0
        (folder / "incident").mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5, "seconds/step": 1.0}\n')
        rows = [{"step": 0, "mode": "sampled", "precision": "fp8", "accuracy": 0.3, "low": 0.2, "high": 0.4}]
        (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if folder.name == "without-5":  # cut in the middle of a line
            (folder / "metrics.jsonl").write_text('{"step": 1, "rew\n{"step": 2}\n')
            return 0
        if folder.name == "with-4":  # stopped over updates that were not finite
            (folder / "incident" / "batch.safetensors").write_bytes(b"new")
        return 1

    figure = lab / "figures" / "pair.toml"
    figure.write_text(figure.read_text().replace("seeds = [3]", "seeds = [3, 4, 5]"))
    # a stop of long ago, which was resumed: what now ends with status 1 is a crash
    (lab / "runs" / "pair" / "without-4" / "incident").mkdir(parents=True)
    (lab / "runs" / "pair" / "without-4" / "incident" / "batch.safetensors").write_bytes(b"old")
    monkeypatch.setattr("steadyrl_lab.runs._train", train)
    assert main(["--lab", str(lab), "run", "pair"]) == 1
    said = capfd.readouterr().err
    assert "quick-3 ended with status 1" in said
    assert "with-3" not in said  # there was nothing to start it from
    assert "without-4 ended with status 1" in said
    assert "without-5/metrics.jsonl" in said
    stored = finished(lab, load_figure(lab, "pair"))["with", 4]
    assert (stored.status, stored.collapsed_at, measure(stored, "final")) == ("stopped", 0, 0.0)
    assert [path.parent.name for path in lab.rglob("result.json")] == ["with-4"]


@pytest.mark.parametrize("stopped", ["quick-3", "with-3"])
def test_a_run_that_was_stopped_early_is_no_result(
    stopped: str, lab: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    def early(recipe, folder: Path) -> int:  # what SIGTERM makes of a run: one step, a checkpoint, status 0
        folder.mkdir(parents=True, exist_ok=True)
        if folder.name != stopped:
            (folder / "checkpoints" / "step-000000" / "model").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5, "seconds/step": 1.0}\n')
        (folder / "eval.jsonl").write_text("")
        return 0

    monkeypatch.setattr("steadyrl_lab.runs._train", early)
    assert main(["--lab", str(lab), "run", "pair", "--arms", "with"]) == 1
    assert f"{stopped} was asked to stop before its last step" in capfd.readouterr().err
    assert not list(lab.rglob("result.json"))


def test_mistakes_are_named(lab: Path, capfd) -> None:
    for arguments, words in (
        (["run", "par"], "no figure 'par'; it has ['pair']"),
        (["run", "pair", "--arms", "nobody"], "no 'nobody'; it has ['with', 'without']"),
        (["run", "pair", "--seeds", "9"], "no 9; it has [3]"),
    ):
        assert main(["--lab", str(lab), *arguments]) == 2
        assert words in capfd.readouterr().err
    path = lab / "figures" / "pair.toml"
    path.write_text(path.read_text().replace('arm = "with"', 'arm = "who"').replace("updates = 4", "updates = 3"))
    with pytest.raises(RecipeError, match="updates = 3 is no multiple of minibatches = 2"):
        load_figure(lab, "pair")
    path.write_text(path.read_text().replace("updates = 3", "updates = 4").replace("[3]", "[3, 3]"))
    with pytest.raises(RecipeError, match="names one twice"):
        load_figure(lab, "pair")


def test_a_report_of_no_lab_leaves_the_page_alone(tmp_path: Path, capfd) -> None:
    page_there = tmp_path / "docs" / "replication.md"
    page_there.parent.mkdir()
    page_there.write_text("mine")
    assert main(["--lab", str(tmp_path / "none"), "report", "--docs", str(tmp_path / "docs")]) == 2
    assert "has no figures" in capfd.readouterr().err
    assert page_there.read_text() == "mine"


def test_every_figure_makes_recipes() -> None:
    for path in (ROOT / "lab" / "figures").glob("*.toml"):
        figure: Figure = load_figure(ROOT / "lab", path.stem)
        for arm in figure.arms:
            recipe = arm_recipe(ROOT / "lab", figure, arm, figure.seeds[0], model=Path("cold"))
            assert recipe.steps * recipe.update.minibatches == figure.updates


def test_the_old_command_says_where_the_lab_is(capfd) -> None:
    assert steadyrl(["lab", "run", "smoke"]) == 2
    assert "python -m steadyrl_lab" in capfd.readouterr().err
