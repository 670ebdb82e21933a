"""The page and its pictures."""

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
from labs_for_tests import ROOT, result, stored_pair, with_steps

from steadyrl.collapse import RewardSoFar
from steadyrl_lab.__main__ import main
from steadyrl_lab.archive import finished, results_of, store
from steadyrl_lab.figure import (
    Claim,
    figures,
    load_figure,
)
from steadyrl_lab.picture import _curve, _looks
from steadyrl_lab.report import page
from steadyrl_lab.result import Result
from steadyrl_lab.verdict import judge


def test_the_page_and_its_pictures_stand_a_run_that_stopped_in_its_first_step(lab: Path) -> None:
    one = stored_pair(lab, status="stopped")
    store(lab, replace(one, steps={"reward/mean": []}))
    stored_pair(lab, "without", rewards=(0.5,) * 2)
    assert main(["--lab", str(lab), "report", "--docs", str(lab / "docs")]) == 0
    assert "| [A pair](#a-pair) | 0 of 1 | 1 of 1 (1) |" in (lab / "docs" / "replication.md").read_text()
    claim = Claim.model_validate({"id": "C10", "text": "t", "rules": [{"kind": "shows"}]})
    assert judge(claim, results_of(lab, load_figure(lab, "pair")))[0] == "not visible here"  # one run: undecided


def test_the_overview_knows_what_the_whole_figure_changes(lab: Path) -> None:
    path = lab / "figures" / "pair.toml"
    path.write_text(path.read_text().replace("[arms.with]", "change = { update.replay = 'R2' }\n[arms.with]"))
    for arm, accuracy in (("with", 0.75), ("without", 0.25)):
        stored_pair(lab, arm, accuracy=accuracy)
    row = next(line for line in page(lab).splitlines() if line.startswith("| [A pair]"))
    # the start is 0.3: the run without clip ends below it, without having collapsed
    assert row == "| [A pair](#a-pair) | 0 of 1 (1) | 0 of 1 | – | 0.250 | – | – | – | 0.750 |"


def test_runs_that_stand_in_two_figures_are_named(lab: Path) -> None:
    again = (
        (lab / "figures" / "pair.toml").read_text().replace('"A pair"', '"Again"').replace("arms.without", "arms.free")
    )
    (lab / "figures" / "again.toml").write_text(again)
    stored_pair(lab, "without")
    stored_pair(lab, "free", "again")
    assert "`without` is `free` of [Again](#again), made twice." in page(lab)
    assert "`free` is `without` of [A pair](#a-pair), made twice." in page(lab)


def test_every_cold_start_that_missed_its_mark_is_named(lab: Path) -> None:
    path = lab / "figures" / "pair.toml"
    path.write_text(path.read_text().replace("objective.clip = false }", "objective.clip = false }\ncold.seed = 9"))
    regime = lab / "regimes" / "quick.toml"
    regime.write_text(regime.read_text().replace("check_every = 2", "check_every = 2, stop_at = 0.8"))
    stored_pair(lab)
    stored_pair(lab, "without")
    missed = "`quick-3` ended at 0.300 instead of 0.8, `pair.without-3` ended at 0.300 instead of 0.8."
    assert missed in page(lab)


def test_the_page_in_the_documentation_is_what_the_results_say() -> None:
    assert (ROOT / "docs" / "replication.md").read_text() == page(ROOT / "lab")


def test_replay_has_a_colour_and_what_is_not_clipped_a_dash() -> None:
    looks = _looks(["no replay, no clip", "no replay, clip", "R2, no clip", "R2, clip"])
    assert [look["ls"] for look in looks] == ["--", "-", "--", "-"]
    assert looks[0]["color"] == looks[1]["color"] != looks[2]["color"] == looks[3]["color"]
    assert [look["ls"] for look in _looks(["MiniRL", "MiniRL, R3", "GRPO", "MiniRL, free"])] == ["-", "--", "-", ":"]


def test_a_curve_has_its_ends_and_a_point_for_each_window() -> None:
    measured = with_steps(result("a", 0, minibatches=1), policy__entropy=[0.5] * 20)
    assert _curve([measured], "policy/entropy").x == [1.0, 9.0, 17.0, 20.0]
    assert _curve([measured], "").x == [0.0, 6.0, 12.0]


def test_what_the_documentation_says_of_trouble_in_the_lab() -> None:
    runs = [run for figure in figures(ROOT / "lab") for run in finished(ROOT / "lab", figure).values()]
    lowest = min(value for run in runs for value in run.steps["policy/entropy"] if value is not None)
    assert lowest == pytest.approx(3.2e-3, abs=5e-5)
    troubled = [run for run in runs if _ever_low(run)]
    assert (len(runs), len(troubled)) == (347, 36)
    assert sum(run.collapsed_at is not None for run in troubled) == 16


def _ever_low(run: Result) -> bool:
    states = accumulate(run.rewards, RewardSoFar.after, initial=RewardSoFar(minibatches=run.minibatches))
    return any(state.collapsed for state in states)
