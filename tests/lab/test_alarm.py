"""Which quantity announces a collapse."""

import pytest
from labs_for_tests import FALLEN, result, with_steps

from steadyrl_lab.alarm import SIGNS, alarm_step, around, limit, record, usual
from steadyrl_lab.result import Result


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
