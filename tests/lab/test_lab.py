"""The lab: what a collapse is, what a verdict is, what an arm is, and that a finished run is never made twice."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from recipes_for_tests import TINY
from steadyrl.cli import main
from steadyrl.config import RecipeError
from steadyrl.lab.collapse import alarm_step, collapse_step, limits, smoothed
from steadyrl.lab.figure import Claim, Figure, arm_recipe, changed, load_figure
from steadyrl.lab.report import page
from steadyrl.lab.result import Result, ResultError, load_result, measure, results_of, store
from steadyrl.lab.runs import run_figure
from steadyrl.lab.verdict import interval, judge, wilson

ROOT = Path(__file__).parents[2]


def test_smoothing_looks_back_only() -> None:
    assert smoothed([1.0, 3.0, 5.0, 9.0], 2) == [1.0, 2.0, 4.0, 7.0]


def test_a_collapse_begins_where_the_reward_leaves_for_good() -> None:
    up, dip, down = [0.3, 0.6, 0.9], [0.1], [0.5, 0.3, 0.2]
    # N = 8: the window of 8 updates is one step; 2/3 of the best, .9, is .6
    assert collapse_step(up + dip + [0.9] + down, minibatches=8) == 5  # the dip was not the collapse
    assert collapse_step(up + dip + [0.9], minibatches=8) is None
    assert collapse_step([0.9] * 11 + [0.1] * 1, minibatches=8) == 11  # 1/12 of the run is enough
    assert collapse_step([0.9] * 23 + [0.1] * 1, minibatches=8) is None  # 1/24 is not
    assert collapse_step([0.9, 0.61, 0.61], minibatches=8) is None  # above 2/3
    assert collapse_step([0.0, 0.0], minibatches=8) is None  # nothing to lose


def test_the_window_of_a_collapse_counts_updates() -> None:
    rewards = [0.9] * 20 + [0.0] * 4
    assert collapse_step(rewards, minibatches=8) == 20
    assert (
        collapse_step(rewards, minibatches=2) == 21
    )  # over 4 steps: (3 · .9)/4 = .675 stays above .6, 2 · .9/4 does not


def test_an_alarm_is_two_steps_beyond_what_stable_runs_showed() -> None:
    stable = [{"mismatch/k3": [float(i) for i in range(101)], "policy/entropy": [1.0, 2.0]}]
    limit = limits(stable)
    assert limit == {"mismatch/k3": 99.0, "policy/entropy": 1.0}
    assert alarm_step([0.0, 100.0, 0.0, 100.0, 101.0], 99.0, rises=True) == 3
    assert alarm_step([2.0, 0.5, 0.5], 1.0, rises=False) == 1
    assert alarm_step([0.0, None, math.nan], 99.0, rises=True) == 1  # what is not finite is beyond
    assert alarm_step([99.0, 99.0], 99.0, rises=True) is None


def result(arm: str, seed: int, *, accuracy: float = 0.5, rewards: tuple[float, ...] = (0.5,) * 12, **fields) -> Result:
    evals = [
        {"step": step, "mode": mode, "precision": precision, "accuracy": value}
        for step, value in ((0, 0.3), (6, accuracy + 0.1), (12, accuracy))
        for mode in ("sampled", "greedy")
        for precision in ("fp8", "native")
    ]
    steps: dict[str, list[float | None]] = {
        "reward/mean": list(rewards),
        "policy/entropy": [0.4] * len(rewards),
        "mismatch/k3": [1e-3] * len(rewards),
        "seconds/step": [2.0] * (len(rewards) - 1) + [600.0],
    }
    known = {"figure": "f", "fingerprint": "x", "minibatches": 8, "status": "finished", "machine": "m"}
    return Result(**{**known, "arm": arm, "seed": seed, "steps": steps, "evals": evals, **fields})


FALLEN = (0.9,) * 6 + (0.1,) * 6


def verdict(rule: dict, results) -> str:
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule]})
    return judge(claim, results)[0]


def test_differences_are_paired_by_seed() -> None:
    # the seeds differ far more than the arms: unpaired, nothing would show
    ours = [result("a", s, accuracy=0.2 + 0.15 * s + 0.05 + 0.001 * (s % 2)) for s in range(5)]
    theirs = [result("b", s, accuracy=0.2 + 0.15 * s) for s in range(5)]
    results = {"a": ours, "b": theirs}
    assert verdict({"kind": "higher", "arm": "a", "than": ["b"]}, results) == "replicated"
    assert verdict({"kind": "higher", "arm": "b", "than": ["a"]}, results) == "contradicted"
    assert verdict({"kind": "higher", "arm": "a", "than": ["b"], "by": 0.0505}, results) == "not visible here"
    assert verdict({"kind": "alike", "arm": "a", "to": "b", "within": 0.1}, results) == "replicated"
    assert verdict({"kind": "alike", "arm": "a", "to": "b", "within": 0.01}, results) == "contradicted"
    assert verdict({"kind": "higher", "arm": "a", "than": ["b"]}, results | {"b": theirs[:1]}) == "not run"


def test_intervals_by_hand() -> None:
    # mean 2, sd 1, 3 values: 4.303 / sqrt 3 = 2.4843
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((-0.4843, 4.4843), abs=1e-4)
    # 5 of 5: 1 / (1 + 1.96²/5) = .5655
    assert wilson(5, 5) == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_shares_need_most_runs() -> None:
    fallen = [result("a", s, rewards=FALLEN) for s in range(5)]
    assert verdict({"kind": "collapses", "arm": "a"}, {"a": fallen}) == "replicated"
    assert verdict({"kind": "stable", "arm": "a"}, {"a": fallen}) == "contradicted"
    mixed = [*fallen[:4], result("a", 4)]
    assert verdict({"kind": "collapses", "arm": "a"}, {"a": mixed}) == "not visible here"
    assert verdict({"kind": "collapses", "arm": "a"}, {"a": []}) == "not run"


def test_a_run_that_stopped_has_collapsed() -> None:
    assert result("a", 0, status="stopped").collapsed_at == 11
    assert result("a", 0).collapsed_at is None


def test_a_claim_is_as_good_as_its_worst_rule() -> None:
    rules = [{"kind": "stable", "arm": "a"}, {"kind": "collapses", "arm": "b"}]
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": rules})
    stable, fallen = ([result("x", s, rewards=r) for s in range(5)] for r in ((0.5,) * 12, FALLEN))
    assert judge(claim, {"a": stable, "b": fallen})[0] == "replicated"
    assert judge(claim, {"a": stable, "b": stable})[0] == "contradicted"
    assert judge(claim, {"a": stable, "b": []})[0] == "not run"


def test_collapses_that_show() -> None:
    def fallen(entropy: float, kl: float) -> Result:
        one = result("a", 0, rewards=FALLEN)
        return replace(
            one,
            steps=one.steps | {"policy/entropy": [0.4] * 6 + [entropy] * 6, "mismatch/k3": [1e-3] * 6 + [kl] * 6},
        )

    for entropy, kl, word in ((0.4, 1e-3, "contradicted"), (0.1, 1e-3, "replicated"), (0.4, 3e-3, "replicated")):
        assert verdict({"kind": "shows"}, {"a": [fallen(entropy, kl)] * 5}) == word


def test_measures() -> None:
    one = result("a", 0, accuracy=0.6)
    assert (measure(one, "final"), measure(one, "peak")) == (0.6, 0.7)
    assert measure(one, "entropy") == pytest.approx(0.4)
    assert one.seconds == 24.0  # the last step was paused
    assert math.isnan(measure(one, "disagreement"))  # a dense model has none
    assert one.accuracy() == [(0, 0.3), (48, 0.7), (96, 0.6)]  # in updates


def test_another_kind_begins_its_section_anew() -> None:
    tree = {"objective": {"name": "minirl", "clip": False}, "update": {"replay": "R2", "minibatches": 2}}
    assert changed(tree, {"objective": {"name": "grpo"}, "update": {"replay": "none"}}) == {
        "objective": {"name": "grpo"},
        "update": {"replay": "none", "minibatches": 2},
    }
    assert changed(tree, {"objective": {"clip": True}})["objective"] == {"name": "minirl", "clip": True}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A lab of one figure whose runs take a second."""
    (tmp_path / "regimes").mkdir()
    regime = TINY | {"cold_start": {"stages": [{"steps": 2}], "batch": 8, "check_every": 2}}
    regime = {name: value for name, value in regime.items() if name not in ("steps", "update")}
    (tmp_path / "regimes" / "quick.toml").write_text(toml(regime))
    (tmp_path / "pair.toml").write_text(
        'title = "A pair"\nregime = "quick"\nseeds = [3]\nupdates = 4\nminibatches = 2\nevaluate_every = 2\n'
        '[arms.with]\nlabel = "clip"\nchange = { update.replay = "R3" }\n'
        '[arms.without]\nlabel = "no clip"\nchange = { objective = { name = "minirl", clip = false } }\n'
        '[[claims]]\nid = "C7"\ntext = "clipping saves"\nrules = [{ kind = "stable", arm = "with" }]\n'
    )
    return tmp_path


def toml(tree: dict) -> str:
    """A recipe as TOML: JSON's values are TOML's, once each section stands under its name."""

    def inline(value) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + "}"
        return f"[{', '.join(map(inline, value))}]" if isinstance(value, list) else json.dumps(value)

    return "\n".join(f"{name} = {inline(value)}" for name, value in tree.items())


def test_the_global_batch_grows_with_n(lab: Path) -> None:
    figure = load_figure(lab, "pair")
    recipe = arm_recipe(lab, figure, "without", 3, model=Path("cold"))
    assert (recipe.rollout.prompts, recipe.update.minibatches, recipe.steps) == (16, 2, 2)  # 8 prompts a mini-batch
    assert (recipe.evaluate.every, recipe.seed, recipe.cold_start) == (1, 3, None)
    assert not recipe.objective.clip
    assert recipe.model.path == "cold"


def test_a_lab_runs_once_resumes_and_refuses_a_changed_regime(lab: Path, capfd) -> None:
    call = ["lab", "--lab", str(lab), "run", "pair", "--jobs", "1"]
    assert main([*call, "--arms", "with"]) == 0
    assert len(list((lab / "results").rglob("*.json"))) == 1
    assert main(call) == 0
    said = capfd.readouterr().out
    assert said.count("cold start") == 1
    assert said.count("seed 3") == 2
    figure = load_figure(lab, "pair")
    one = load_result(lab, "pair", "with", 3)
    assert one is not None
    assert one.accuracy()[-1][0] == 4
    assert len(one.steps["reward/mean"]) == 2
    assert main(call) == 0
    assert capfd.readouterr().out == ""

    text = page(lab)
    assert "2 of 2 runs" in text
    assert "| C7 | clipping saves |" in text
    assert main(["lab", "--lab", str(lab), "report", "--docs", str(lab / "docs")]) == 0
    assert (lab / "docs" / "replication.md").read_text() == text
    assert "clip" in (lab / "docs" / "replication" / "pair.svg").read_text()

    # killed after its first step: the result is the same, bit for bit, but for the seconds
    folder = lab / "runs" / "pair" / "with-3"
    (lab / "results" / "pair" / "with-3.json").unlink()
    for newest in sorted((folder / "checkpoints").iterdir())[1:]:
        shutil.rmtree(newest)
    capfd.readouterr()
    assert main(call) == 0
    again = load_result(lab, "pair", "with", 3)
    assert again is not None
    assert again.evals == one.evals
    assert {k: v for k, v in again.steps.items() if "seconds" not in k} == {
        k: v for k, v in one.steps.items() if "seconds" not in k
    }

    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("learning_rate = 0.001", "learning_rate = 0.002"))
    assert main(call) == 2
    assert "with-3.json was made with another recipe" in capfd.readouterr().err
    with pytest.raises(ResultError):
        run_figure(lab, figure, arms=[], seeds=[], jobs=1)


def test_a_run_that_was_stopped_early_is_no_result(lab: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    def early(recipe, folder: Path) -> int:  # what SIGTERM makes of a run: one step, a checkpoint, status 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5, "seconds/step": 1.0}\n')
        (folder / "eval.jsonl").write_text("")
        return 0

    monkeypatch.setattr("steadyrl.lab.runs._train", early)
    assert main(["lab", "--lab", str(lab), "run", "pair", "--arms", "with"]) == 1
    assert "with-3 was asked to stop before its last step" in capfd.readouterr().err
    assert not (lab / "results").exists()


def test_mistakes_are_named(lab: Path, capfd) -> None:
    for arguments, words in (
        (["run", "par"], "no figure 'par'; it has ['pair']"),
        (["run", "pair", "--arms", "nobody"], "no 'nobody'; it has ['with', 'without']"),
        (["run", "pair", "--seeds", "9"], "no 9; it has [3]"),
    ):
        assert main(["lab", "--lab", str(lab), *arguments]) == 2
        assert words in capfd.readouterr().err
    path = lab / "pair.toml"
    path.write_text(path.read_text().replace('arm = "with"', 'arm = "who"').replace("updates = 4", "updates = 3"))
    with pytest.raises(RecipeError, match="updates = 3 is no multiple of minibatches = 2"):
        load_figure(lab, "pair")


def test_a_damaged_result_is_named(lab: Path) -> None:
    store(lab, result("with", 3, figure="pair"))
    path = lab / "results" / "pair" / "with-3.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ResultError, match=r"with-3\.json is damaged"):
        results_of(lab, load_figure(lab, "pair"))


def test_claims_may_name_arms_of_other_figures(lab: Path) -> None:
    other = (lab / "pair.toml").read_text().replace('arm = "with"', 'arm = "pair/with"')
    (lab / "other.toml").write_text(other)
    store(lab, result("with", 3, figure="pair"))
    assert [r.figure for r in results_of(lab, load_figure(lab, "other"))["pair/with"]] == ["pair"]
    (lab / "other.toml").write_text(other.replace("pair/with", "pair/nobody"))
    with pytest.raises(RecipeError, match="other names 'pair/nobody'"):
        results_of(lab, load_figure(lab, "other"))


def test_the_page_in_the_documentation_is_what_the_results_say() -> None:
    assert (ROOT / "docs" / "replication.md").read_text() == page(ROOT / "lab")


def test_every_figure_makes_recipes() -> None:
    for path in (ROOT / "lab").glob("*.toml"):
        figure: Figure = load_figure(ROOT / "lab", path.stem)
        for arm in figure.arms:
            recipe = arm_recipe(ROOT / "lab", figure, arm, figure.seeds[0], model=Path("cold"))
            assert recipe.steps * recipe.update.minibatches == figure.updates
