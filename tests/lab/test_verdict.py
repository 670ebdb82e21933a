"""What a rule and a claim come to."""

import math
from dataclasses import replace

import pytest
from labs_for_tests import FALLEN, result, with_steps

from steadyrl_lab.figure import (
    Claim,
)
from steadyrl_lab.result import measure
from steadyrl_lab.verdict import interval, judge, smoothed, student, wilson


def test_smoothing_looks_back_only() -> None:
    assert smoothed([1.0, 3.0, 5.0, 9.0], 2) == [1.0, 2.0, 4.0, 7.0]


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
    assert math.isnan(measure(one, "disagreement"))  # a dense model has none
    assert one.accuracy() == [(0, 0.3), (48, 0.7), (96, 0.6)]  # in updates


def test_a_run_that_was_stopped_has_no_last_policy() -> None:
    one = result("a", 0, accuracy=0.6, status="stopped")
    assert [measure(one, what) for what in ("final", "final_greedy", "final_native", "peak")] == [0.0, 0.0, 0.0, 0.7]
    at_once = replace(one, steps={"reward/mean": []})
    assert at_once.collapsed_at == 0


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
