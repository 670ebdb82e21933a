"""The lab: what a collapse is, what a verdict is, what an arm is, and that a finished run is never made twice."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from recipes_for_tests import TINY
from steadyrl.cli import main
from steadyrl.lab.alarm import SIGNS, alarm_step, around, limit, record, usual
from steadyrl.lab.collapse import collapse_step, smoothed
from steadyrl.lab.figure import Claim, Figure, arm_recipe, changed, cold_name, cold_recipe, fingerprint, load_figure
from steadyrl.lab.picture import _looks
from steadyrl.lab.report import page
from steadyrl.lab.result import Result, ResultError, load_result, measure, results_of, store
from steadyrl.lab.runs import run_figure
from steadyrl.lab.verdict import interval, judge, student, wilson
from steadyrl.recipe import RecipeError

ROOT = Path(__file__).parents[2]


def test_smoothing_looks_back_only() -> None:
    assert smoothed([1.0, 3.0, 5.0, 9.0], 2) == [1.0, 2.0, 4.0, 7.0]


def test_a_collapse_begins_where_the_reward_leaves_for_good() -> None:
    up, dip, down = [0.3, 0.6, 0.9], [0.1], [0.5, 0.3, 0.2]
    # N = 8: the window of 8 updates is one step; 2/3 of the best, .9, is .6
    assert collapse_step(up + dip + [0.9] + down, minibatches=8) == 5  # the dip was not the collapse
    assert collapse_step(up + dip + [0.9], minibatches=8) is None
    assert collapse_step([0.9] * 22 + [0.1] * 2, minibatches=8) == 22  # 1/12 of the run is enough
    assert collapse_step([0.9] * 46 + [0.1] * 2, minibatches=8) is None  # 1/24 is not
    assert collapse_step([0.9] * 10 + [0.1] * 2, minibatches=8) == 10
    assert collapse_step([0.9] * 11 + [0.1] * 1, minibatches=8) is None  # a fall in the last step stays nowhere
    assert collapse_step([0.9, 0.61, 0.61], minibatches=8) is None  # above 2/3
    assert collapse_step([0.0, 0.0], minibatches=8) is None  # nothing to lose


def test_the_window_of_a_collapse_counts_updates() -> None:
    rewards = [0.9] * 20 + [0.0] * 4
    assert collapse_step(rewards, minibatches=8) == 20
    assert (
        collapse_step(rewards, minibatches=2) == 21
    )  # over 4 steps: (3 · .9)/4 = .675 stays above .6, 2 · .9/4 does not


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
    known = {
        "figure": "f",
        "fingerprint": "x",
        "minibatches": 8,
        "replay": "none",
        "status": "finished",
        "machine": "m",
    }
    return Result(**{**known, "arm": arm, "seed": seed, "steps": steps, "evals": evals, **fields})


def with_steps(one: Result, **steps) -> Result:
    """The same run with some of its quantities replaced; `__` is the slash of their names."""
    return replace(one, steps=one.steps | {name.replace("__", "/"): values for name, values in steps.items()})


FALLEN = (0.9,) * 6 + (0.1,) * 6


def verdict(rule: dict, results) -> str:
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule]})
    return judge(claim, results)[0]


def test_an_alarm_is_beyond_what_stable_runs_showed() -> None:
    measured = [float(i) for i in range(101)]
    stable = [with_steps(result("a", 0), mismatch__k3=measured, policy__entropy=measured)]
    assert limit(stable, "mismatch/k3", "rises") == 99.0
    assert limit(stable, "policy/entropy", "falls") == 1.0
    assert limit(stable, "weight/ess", "falls") is None
    assert alarm_step([0.0, 100.0, 0.0], 99.0, "rises") == 1
    assert alarm_step([2.0, 1.0, 0.5], 1.0, "falls") == 2
    assert alarm_step([None, 99.0, None], 99.0, "rises") is None


def test_an_alarm_hears_the_mean_over_eight_updates_whatever_n_is() -> None:
    k3 = [1.0, 3.0, None, 5.0, 8.0]
    assert with_steps(result("a", 0), mismatch__k3=k3).course("mismatch/k3") == k3
    # N = 2: four steps, without what was not measured
    slow = with_steps(result("a", 0, minibatches=2), mismatch__k3=k3)
    assert slow.course("mismatch/k3") == [1.0, 2.0, 2.0, 3.0, 16 / 3]
    assert result("a", 0).course("weight/ess") == []


def test_a_run_is_judged_by_other_seeds_and_an_alarm_at_the_collapse_is_none() -> None:
    def run(seed: int, k3: list[float], rewards=(0.5,) * 12) -> Result:
        return with_steps(result("a", seed, rewards=rewards), mismatch__k3=k3)

    quiet, loud = [1.0] * 12, [1.0] * 8 + [3.0] * 4
    # FALLEN falls at step 6 of N = 8
    early = run(2, [1.0] * 2 + [2.0] * 10, FALLEN)
    late = run(3, [1.0] * 5 + [2.0] * 7, FALLEN)
    leads, false = record([[run(0, quiet), run(1, quiet), early, late]], "mismatch/k3", "rises")
    assert (leads, false) == ([(6 - 2) * 8, (6 - 5) * 8], [0.0, 0.0])
    at_once = run(3, [1.0] * 6 + [2.0] * 6, FALLEN)
    assert record([[run(0, quiet), run(1, quiet), at_once]], "mismatch/k3", "rises").leads == [None]
    # by all stable runs the loud one would not be beyond what it has itself shown; at step 8 it is too late to count
    loud_before = run(1, [1.0] * 5 + [3.0] * 7)
    falls = run(2, [1.0] * 12, FALLEN)
    assert record([[run(0, quiet), loud_before, falls]], "mismatch/k3", "rises").false == [0.5]
    assert record([[run(0, quiet), run(1, loud), falls]], "mismatch/k3", "rises").false == [0.0]
    assert record([[run(0, quiet, FALLEN)]], "mismatch/k3", "rises") == ([], [])


def test_an_alarm_that_older_results_lack_is_judged_by_those_that_have_it() -> None:
    def run(seed: int, ess: list[float] | None, rewards=(0.5,) * 12) -> Result:
        one = result("a", seed, rewards=rewards)
        return one if ess is None else with_steps(one, weight__ess_sequences=ess)

    falling = run(2, [0.9] * 2 + [0.2] * 10, FALLEN)
    runs = [run(0, [0.9] * 12), run(1, [0.9] * 12), run(3, None), run(4, None, FALLEN), falling]
    assert ("weight/ess_sequences", "falls") in SIGNS
    assert record([runs], "weight/ess_sequences", "falls") == ([(6 - 2) * 8], [0.0])
    assert record([[run(0, None), run(1, None, FALLEN)]], "weight/ess_sequences", "falls") == ([], [])


def test_a_fall_is_dated_by_the_first_time_that_the_reward_is_so_low() -> None:
    rewards = (0.9,) * 4 + (0.1,) * 2 + (0.9,) + (0.1,) * 5
    back_for_a_while = result("a", 0, rewards=rewards)
    assert (back_for_a_while.fell_at, back_for_a_while.collapsed_at) == (4, 7)
    assert result("a", 0, rewards=(0.9,) * 4 + (0.1,) * 2 + (0.9,) * 6).fell_at is None  # it did not collapse
    assert result("a", 0, status="stopped").fell_at == 11


def test_every_run_counts_once_around_its_fall() -> None:
    def run(seed: int, minibatches: int, ess: list[float], rewards) -> Result:
        return with_steps(result("a", seed, minibatches=minibatches, rewards=rewards), weight__ess=ess)

    # N = 1 has eight steps in a window, N = 8 one: the run of N = 1 does not outweigh the two others
    slow = run(0, 1, [1.0] * 16 + [0.8] * 24, (0.9,) * 20 + (0.0,) * 20)  # smoothed over 8 steps it falls at 22
    assert slow.fell_at == 22
    fast = [run(seed, 8, [0.5] * 5 + [0.2] * 7, FALLEN) for seed in (1, 2)]
    assert around([slow, *fast], "weight/ess") == [0.5, 0.2, 0.2, 0.2]
    assert around([slow], "weight/ess") == pytest.approx([1.0, (2 * 1.0 + 6 * 0.8) / 8, 0.8, 0.8])
    assert around([result("a", 0, rewards=FALLEN)], "weight/ess") == [None] * 4
    assert usual([slow, *fast], "weight/ess") == pytest.approx((0.5 * 5 + 0.2 * 7) / 12)
    assert usual([], "weight/ess") is None


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


def test_how_many_seeds_would_decide() -> None:
    ours = [result("a", s, accuracy=0.5 + difference) for s, difference in enumerate((0.0, 0.0, 0.2, 0.2))]
    results = {"a": ours, "b": [result("b", s) for s in range(4)]}
    rule = {"kind": "higher", "arm": "a", "than": ["b"]}
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule]})
    (finding,) = judge(claim, results)[1]
    # mean .1, sd .11547; t/√n: 7 seeds 2.447/2.646 = .925 → .1068, 8 seeds 2.365/2.828 = .836 → .0966 < .1
    assert (finding.verdict, finding.reason, finding.seeds_needed) == ("not visible here", "undecided", 8)
    assert finding.leans == "for"
    (other_way,) = judge(claim, {"a": results["b"], "b": ours})[1]
    assert (other_way.seeds_needed, other_way.leans) == (8, "against")
    assert judge(claim, results | {"a": ours[1:]})[1][0].seeds_needed is None  # three tell nothing of the spread
    assert judge(claim, results | {"a": results["b"]})[1][0].seeds_needed is None  # no effect at all
    for n, known in ((11, 2.228), (16, 2.131), (31, 2.042)):
        assert student(n) == pytest.approx(known, rel=2e-3)


def test_a_share_of_collapses_is_compared_by_seed() -> None:
    rule = {"kind": "higher", "measure": "collapsed", "arm": "a", "than": ["b"]}
    fallen, stable = ([result("a", s, rewards=r) for s in range(5)] for r in (FALLEN, (0.5,) * 12))
    # the sign test over the seeds that differ: five of five by chance in 1/32, four of four in 1/16
    assert verdict(rule, {"a": fallen, "b": stable}) == "replicated"
    assert verdict(rule, {"a": stable, "b": fallen}) == "contradicted"
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule]})
    (finding,) = judge(claim, {"a": [*fallen[:4], stable[4]], "b": stable})[1]
    assert (finding.verdict, finding.reason) == ("not visible here", "undecided")
    assert finding.effect == "only a at 4 of 5 seeds, only b at 0; p = 0.062"
    # 3 and 1 of four: (4 + 1) / 16
    mixed = {"a": [*fallen[:3], *stable[3:]], "b": [*stable[:3], fallen[3], stable[4]]}
    assert judge(claim, mixed)[1][0].effect.endswith("p = 0.312")
    assert verdict(rule, {"a": stable, "b": stable}) == "not visible here"


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


def test_of_a_claim_with_a_contradicted_rule_nothing_else_is_needed() -> None:
    rules = [{"kind": "stable", "arm": "a"}, {"kind": "collapses", "arm": "b"}]
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": rules})
    assert judge(claim, {"a": [result("a", s, rewards=FALLEN) for s in range(5)], "b": []})[0] == "contradicted"


def test_what_saves_a_run_shows_only_where_runs_collapse() -> None:
    rule = {"kind": "collapses", "arm": "b"}
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule], "where_collapses": "a"})
    stable, fallen = ([result("x", s, rewards=r) for s in range(5)] for r in ((0.5,) * 12, FALLEN))
    assert judge(claim, {"a": fallen[:3] + stable[:2], "b": stable})[0] == "contradicted"
    word, (finding,) = judge(claim, {"a": fallen[:2] + stable[:2], "b": stable})
    assert word == "not visible here"
    assert finding.effect.endswith("but a collapses in 2 of 4")
    assert finding.reason == "too few collapses to be saved from"
    assert judge(claim, {"a": stable, "b": stable})[1][0].reason == "nothing to be saved from"
    assert judge(claim, {"a": fallen, "b": []})[0] == "not run"
    assert judge(claim, {"a": [], "b": stable})[0] == "not run"


def test_a_collapse_shows_by_contrast_with_stable_runs() -> None:
    falling = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.1, 0.1]
    learning = [with_steps(result("a", s), policy__entropy=falling) for s in range(2)]

    def shown(entropy: list, kl: list) -> str:
        fallen = with_steps(result("a", 0, rewards=FALLEN), policy__entropy=entropy, mismatch__k3=kl)
        return verdict({"kind": "shows"}, {"a": learning + [fallen] * 5})

    flat = [1e-3] * 12
    assert shown(falling, flat) == "contradicted"  # its entropy halves, as that of every run that learns
    assert shown([v / 2 for v in falling], flat) == "replicated"
    assert shown(falling, [1e-3] * 6 + [2e-3] * 6) == "replicated"
    assert shown(falling, [1e-3] * 10 + [2e-3] * 2) == "contradicted"  # long after
    assert shown(falling, [1e-3] * 6 + [None] * 6) == "replicated"  # what is not finite has risen
    assert verdict({"kind": "shows"}, {"a": learning}) == "not visible here"
    assert verdict({"kind": "shows"}, {"a": []}) == "not run"


def test_measures() -> None:
    one = result("a", 0, accuracy=0.6)
    assert (measure(one, "final"), measure(one, "peak")) == (0.6, 0.7)
    assert measure(one, "entropy") == pytest.approx(0.4)
    assert one.seconds == 24.0  # the last step was paused
    assert math.isnan(measure(one, "disagreement"))  # a dense model has none
    assert one.accuracy() == [(0, 0.3), (48, 0.7), (96, 0.6)]  # in updates


def test_a_run_that_was_stopped_has_no_last_policy() -> None:
    one = result("a", 0, accuracy=0.6, status="stopped")
    assert [measure(one, what) for what in ("final", "final_greedy", "final_native", "peak")] == [0.0, 0.0, 0.0, 0.7]
    at_once = replace(one, steps={"reward/mean": [], "seconds/step": []})
    assert (at_once.collapsed_at, at_once.seconds) == (0, 0.0)


def test_natural_divergence_undoes_what_replay_lowers() -> None:
    computed = {"replay__k3_natural": [3e-3] * 12, "replay__k3_replayed": [1e-3] * 12}
    assert measure(with_steps(result("a", 0, replay="R3"), **computed), "kl_natural") == pytest.approx(3e-3)
    assert measure(with_steps(result("a", 0, replay="R2"), **computed), "kl_natural") == pytest.approx(1e-3)


def test_a_seed_without_a_measure_is_left_out() -> None:
    ours = [result("a", s) for s in range(3)]
    ours[1] = with_steps(ours[1], policy__entropy=[None] * 12)
    results = {"a": ours, "b": [with_steps(r, policy__entropy=[0.3] * 12) for r in ours]}
    rule = {"kind": "higher", "measure": "entropy", "arm": "a", "than": ["b"]}
    claim = Claim.model_validate({"id": "C", "text": "t", "rules": [rule]})
    assert judge(claim, results)[1][0].effect.endswith("2 pairs")


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
    cold = {"stages": [{"steps": 2}], "batch": 8, "check_every": 2}
    regime = TINY | {"cold_start": cold, "objective": {"name": "minirl"}}
    regime = {name: value for name, value in regime.items() if name not in ("steps", "update")}
    (tmp_path / "regimes" / "quick.toml").write_text(toml(regime))
    (tmp_path / "pair.toml").write_text(
        'title = "A pair"\nregime = "quick"\nseeds = [3]\nupdates = 4\nminibatches = 2\nevaluate_every = 2\n'
        '[arms.with]\nlabel = "clip"\nchange = { update.replay = "R3" }\n'
        '[arms.without]\nlabel = "no clip"\nchange = { objective.clip = false }\n'
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


def test_a_cold_start_is_the_regimes_the_figures_or_the_arms(lab: Path) -> None:
    path = lab / "pair.toml"
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
    assert f"every run asked for has its result in {lab / 'results' / 'pair'};" in capfd.readouterr().out

    text = page(lab)
    assert "2 of 2 runs" in text
    assert re.search(r"\| \[A pair\]\(#a-pair\) \| 0 of 1( \(1\))? \| 0 of 1( \(1\))? \|", text)
    assert "| C7 | clipping saves |" in text
    (lab / "docs" / "replication").mkdir(parents=True)
    (lab / "docs" / "replication" / "gone.svg").write_text("of a figure that is no more")
    assert main(["lab", "--lab", str(lab), "report", "--docs", str(lab / "docs")]) == 0
    assert [path.name for path in (lab / "docs" / "replication").iterdir()] == ["pair.svg"]
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
    for command in (call, ["lab", "--lab", str(lab), "report", "--docs", str(lab / "docs")]):
        assert main(command) == 2
        assert "with-3.json was made with another recipe" in capfd.readouterr().err
    with pytest.raises(ResultError):
        run_figure(lab, figure, arms=[], seeds=[], jobs=1)


def test_a_changed_cold_start_is_not_taken_for_the_new_one(lab: Path, capfd) -> None:
    made = lab / "runs" / "cold" / "quick-3"
    (made / "checkpoints" / "step-000000" / "model").mkdir(parents=True)
    recipe = cold_recipe(lab, load_figure(lab, "pair"), "with", 3)
    (made / "recipe.json").write_text(recipe.model_dump_json())
    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("batch = 8", "batch = 16"))
    assert main(["lab", "--lab", str(lab), "run", "pair"]) == 2
    assert "quick-3 holds a run of another recipe; delete it" in capfd.readouterr().err


def test_a_changed_arm_is_refused_before_anything_is_run(lab: Path, capfd) -> None:
    begun = lab / "runs" / "pair" / "without-3"
    begun.mkdir(parents=True)
    recipe = arm_recipe(lab, load_figure(lab, "pair"), "without", 3, model=Path("cold"))
    (begun / "recipe.json").write_text(recipe.model_dump_json())
    assert main(["lab", "--lab", str(lab), "run", "pair"]) == 2
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

    figure = lab / "pair.toml"
    figure.write_text(figure.read_text().replace("seeds = [3]", "seeds = [3, 4, 5]"))
    # a stop of long ago, which was resumed: what now ends with status 1 is a crash
    (lab / "runs" / "pair" / "without-4" / "incident").mkdir(parents=True)
    (lab / "runs" / "pair" / "without-4" / "incident" / "batch.safetensors").write_bytes(b"old")
    monkeypatch.setattr("steadyrl.lab.runs._train", train)
    assert main(["lab", "--lab", str(lab), "run", "pair"]) == 1
    said = capfd.readouterr().err
    assert "quick-3 ended with status 1" in said
    assert "with-3" not in said  # there was nothing to start it from
    assert "without-4 ended with status 1" in said
    assert "without-5/metrics.jsonl" in said
    stored = load_result(lab, "pair", "with", 4)
    assert stored is not None
    assert (stored.status, stored.collapsed_at, measure(stored, "final")) == ("stopped", 0, 0.0)
    assert [path.name for path in (lab / "results").rglob("*.json")] == ["with-4.json"]


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

    monkeypatch.setattr("steadyrl.lab.runs._train", early)
    assert main(["lab", "--lab", str(lab), "run", "pair", "--arms", "with"]) == 1
    assert f"{stopped} was asked to stop before its last step" in capfd.readouterr().err
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
    path.write_text(path.read_text().replace("updates = 3", "updates = 4").replace("[3]", "[3, 3]"))
    with pytest.raises(RecipeError, match="names one twice"):
        load_figure(lab, "pair")


def test_a_report_of_no_lab_leaves_the_page_alone(tmp_path: Path, capfd) -> None:
    page_there = tmp_path / "docs" / "replication.md"
    page_there.parent.mkdir()
    page_there.write_text("mine")
    assert main(["lab", "--lab", str(tmp_path / "none"), "report", "--docs", str(tmp_path / "docs")]) == 2
    assert "has no figures" in capfd.readouterr().err
    assert page_there.read_text() == "mine"


def stored_pair(lab: Path, arm: str = "with", name: str = "pair", **fields) -> Result:
    mark = fingerprint(lab, load_figure(lab, name), arm, 3)
    store(lab, one := result(arm, 3, figure=name, fingerprint=mark, minibatches=2, **fields))
    return one


def test_the_page_and_its_pictures_stand_a_run_that_stopped_in_its_first_step(lab: Path) -> None:
    one = stored_pair(lab, status="stopped")
    store(lab, replace(one, steps={"reward/mean": [], "seconds/step": []}))
    stored_pair(lab, "without", rewards=(0.5,) * 2)
    assert main(["lab", "--lab", str(lab), "report", "--docs", str(lab / "docs")]) == 0
    assert "| [A pair](#a-pair) | 0 of 1 | 1 of 1 (1) |" in (lab / "docs" / "replication.md").read_text()
    claim = Claim.model_validate({"id": "C10", "text": "t", "rules": [{"kind": "shows"}]})
    assert judge(claim, results_of(lab, load_figure(lab, "pair")))[0] == "not visible here"  # one run: undecided


def test_the_overview_knows_what_the_whole_figure_changes(lab: Path) -> None:
    path = lab / "pair.toml"
    path.write_text(path.read_text().replace("[arms.with]", "change = { update.replay = 'R2' }\n[arms.with]"))
    for arm, accuracy in (("with", 0.75), ("without", 0.25)):
        stored_pair(lab, arm, accuracy=accuracy)
    row = next(line for line in page(lab).splitlines() if line.startswith("| [A pair]"))
    # the start is 0.3: the run without clip ends below it, without having collapsed
    assert row == "| [A pair](#a-pair) | 0 of 1 (1) | 0 of 1 | – | 0.250 | – | – | – | 0.750 |"


def test_runs_that_stand_in_two_figures_are_named(lab: Path) -> None:
    again = (lab / "pair.toml").read_text().replace('"A pair"', '"Again"').replace("arms.without", "arms.free")
    (lab / "again.toml").write_text(again)
    stored_pair(lab, "without")
    stored_pair(lab, "free", "again")
    assert "`without` is `free` of [Again](#again), made twice." in page(lab)
    assert "`free` is `without` of [A pair](#a-pair), made twice." in page(lab)


def test_every_cold_start_that_missed_its_mark_is_named(lab: Path) -> None:
    path = lab / "pair.toml"
    path.write_text(path.read_text().replace("objective.clip = false }", "objective.clip = false }\ncold.seed = 9"))
    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("check_every = 2", "check_every = 2, stop_at = 0.8"))
    stored_pair(lab)
    stored_pair(lab, "without")
    missed = "`quick-3` ended at 0.300 instead of 0.8, `pair.without-3` ended at 0.300 instead of 0.8."
    assert missed in page(lab)


def test_a_damaged_result_is_named(lab: Path) -> None:
    stored_pair(lab)
    path = lab / "results" / "pair" / "with-3.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ResultError, match=r"with-3\.json is damaged"):
        results_of(lab, load_figure(lab, "pair"))


def test_claims_may_name_arms_of_other_figures(lab: Path) -> None:
    other = (lab / "pair.toml").read_text().replace('arm = "with"', 'arm = "pair/with"')
    (lab / "other.toml").write_text(other)
    stored_pair(lab)
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


def test_replay_has_a_colour_and_what_is_not_clipped_a_dash() -> None:
    looks = _looks(["no replay, no clip", "no replay, clip", "R2, no clip", "R2, clip"])
    assert [look["ls"] for look in looks] == ["--", "-", "--", "-"]
    assert looks[0]["color"] == looks[1]["color"] != looks[2]["color"] == looks[3]["color"]
    assert [look["ls"] for look in _looks(["MiniRL", "MiniRL, R3", "GRPO", "MiniRL, free"])] == ["-", "--", "-", ":"]
