import math
import random

import pytest
import torch

from steadyrl.estimates import Estimate, accuracy

Z = 1.959964


def wilson(right: int, n: int) -> tuple[float, float]:
    """The textbook's form: the p with |p̂ − p| = z √(p(1−p)/n), from the quadratic (1+z²/n)p² − (2p̂+z²/n)p + p̂² = 0."""
    share = right / n
    a, b, c = 1 + Z**2 / n, -(2 * share + Z**2 / n), share**2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def single(right: int, n: int) -> Estimate:
    return accuracy((torch.arange(n) < right).float()[:, None])


def width(found: Estimate) -> float:
    return found.high - found.low


def test_one_sample_of_ten_prompts_by_hand():
    found = single(3, 10)
    n = 10 - 1  # p(1−p)/s² with s² = p(1−p)/(n−1), the unbiased variance of the mean
    low, high = wilson_share(0.3, n)
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((low, high))


def wilson_share(share: float, n: float) -> tuple[float, float]:
    """By hand for a share that need not be a whole count."""
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n * n)) / (1 + Z**2 / n)
    return centre - half, centre + half


@pytest.mark.parametrize(("right", "n"), [(30, 100), (1, 200), (128, 256), (499, 512)])
def test_one_sample_a_prompt_is_wilsons_interval(right, n):
    found = single(right, n)
    assert found.value == pytest.approx(right / n)
    assert (found.low, found.high) == pytest.approx(wilson(right, n), abs=1.0 / n**1.5)


def test_samples_that_agree_within_a_prompt_add_nothing():
    one = single(30, 100)
    same = accuracy((torch.arange(100) < 30).float()[:, None].expand(100, 8))
    assert (same.value, same.low, same.high) == pytest.approx((one.value, one.low, one.high))


def test_there_are_no_more_samples_than_were_drawn():
    means = torch.tensor([[1.0] * 50 + [0.0] * 50, [1.0] * 51 + [0.0] * 49])  # p(1−p)/s² would be 10,000
    found = accuracy(means)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.02)


def test_independent_samples_narrow_and_clustered_ones_widen_the_interval():
    draw = torch.Generator().manual_seed(0)
    independent = accuracy((torch.rand(100, 8, generator=draw) < 0.3).float())
    clustered = accuracy((torch.rand(100, 1, generator=draw) < 0.3).float().expand(100, 8))
    assert width(independent) < 0.55 * width(single(30, 100))
    assert width(clustered) > 1.8 * width(independent)


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("prompts", [1, 2, 50])
@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_and_all_wrong_are_defined(prompts, samples, right):
    found = accuracy(torch.full((prompts, samples), right))
    assert found.value == right
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0
    assert width(found) == pytest.approx(Z**2 / (prompts + Z**2))  # Wilson's at 0 and at 1, with n prompts


@pytest.mark.parametrize("correct", [[[1.0, 0.0]], [[1.0], [0.0]], [[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]])
def test_the_interval_holds_the_value_and_stays_within_0_and_1(correct):
    found = accuracy(torch.tensor(correct))
    assert 0.0 <= found.low < found.value < found.high <= 1.0


@pytest.mark.parametrize(
    ("prompts", "samples", "spread"),
    [(100, 1, 0.0), (256, 1, 0.0), (60, 8, 0.0), (100, 8, 0.2), (100, 8, 0.3)],
)
def test_the_interval_covers_the_truth_in_about_95_of_100_draws(prompts, samples, spread):
    """Mean accuracy 0.3, spread over prompts: half of them at 0.3 − spread, half at 0.3 + spread, drawn anew."""
    draw = random.Random(7)
    torch.manual_seed(7)
    covered, repeats = 0, 1000
    for _ in range(repeats):
        chance = torch.tensor([[0.3 + draw.choice((-spread, spread))] for _ in range(prompts)])
        found = accuracy((torch.rand(prompts, samples) < chance).float())
        covered += found.low <= 0.3 <= found.high
    assert 0.92 <= covered / repeats <= 0.98


@pytest.mark.parametrize("chance", [0.02, 0.97])
def test_the_interval_covers_near_the_ends_too(chance):
    torch.manual_seed(1)
    covered = 0
    for _ in range(1000):
        found = accuracy((torch.rand(64, 1) < chance).float())
        covered += found.low <= chance <= found.high
    assert covered / 1000 >= 0.92
