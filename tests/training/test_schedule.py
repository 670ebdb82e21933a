"""The learning rate, by hand."""

import math
from itertools import pairwise

import pytest

from steadyrl.training.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0]),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.75, 0.5, 0.25]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.5]),
        ("cosine", 0, [1.0, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2]),
        ("cosine", 1, [1.0, 1.0, 0.75, 0.25]),
        ("linear", 4, [0.25, 0.5, 0.75, 1.0]),
        ("cosine", 9, [1 / 9, 2 / 9, 3 / 9, 4 / 9]),
    ],
)
def test_learning_rate_by_hand(schedule, warmup, expected):
    found = Schedule(peak=1.0, total=4, warmup=warmup, shape=schedule)
    assert [found.at(number) for number in (1, 2, 3, 4)] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_would_reach_zero_just_after_the_last_step(schedule):
    found = Schedule(peak=3e-4, total=50, warmup=10, shape=schedule)
    rates = [found.at(number) for number in range(1, 52)]
    assert rates[9] == rates[10] == max(rates) == 3e-4
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert rates[49] > 0.0
    assert rates[50] == pytest.approx(0.0, abs=1e-12)


def test_one_step_alone_is_made_at_the_peak():
    assert [Schedule(peak=1.0, total=1, shape="linear").at(number) for number in (1, 2)] == [1.0, 0.0]


def test_without_a_warm_up_the_fall_begins_at_the_peak():
    assert [Schedule(peak=1.0, total=4, shape="linear").at(number) for number in (1, 2)] == [1.0, 0.75]
