import math
import random
from itertools import combinations

import pytest
import torch

from steadyrl.measure.estimates import Estimate, accuracy, ballot, maj_at, mean_reward, pass_at, sizes, student

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


# ---- missing rewards, and rewards between 0 and 1


def test_a_missing_reward_counts_in_no_denominator() -> None:
    correct = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    known = torch.tensor([[True, True], [True, False], [False, False]])
    found = accuracy(correct, known)
    assert found.value == 0.75  # of (1 + 0)/2 and 1/1; the third prompt has no reward
    assert (found.low, found.high) == pytest.approx(wilson_share(0.75, 3.0))  # p(1−p)/s² = 3 = the rewards there are


def test_nothing_known_is_not_a_number() -> None:
    nothing = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)
    for found in (accuracy(*nothing), mean_reward(*nothing)):
        assert math.isnan(found.value)
        assert math.isnan(found.low)


@pytest.mark.parametrize("samples", [1, 3, 7])
def test_all_known_is_the_same_to_the_last_bit(samples: int) -> None:
    correct = (torch.rand(97, samples, generator=torch.Generator().manual_seed(samples)) < 0.4).float()
    assert accuracy(correct, torch.ones_like(correct, dtype=torch.bool)) == accuracy(correct)


def test_mean_reward_by_hand() -> None:
    found = mean_reward(torch.tensor([[0.25, 0.75], [0.5, 1.0], [0.0, 0.5]]))
    half = 4.3027 * 0.25 / math.sqrt(3)  # the prompts' means are 0.5, 0.75 and 0.25; t for 2 degrees of freedom
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), rel=1e-4)
    missing = mean_reward(torch.tensor([[0.5, -9.0], [0.25, 0.25]]), torch.tensor([[True, False], [True, True]]))
    assert missing.value == 0.375


def test_rewards_of_0_and_1_have_the_interval_of_the_accuracy() -> None:
    correct = (torch.arange(40) < 13).float()[:, None]
    assert mean_reward(correct) == accuracy(correct)


def test_one_prompt_has_no_interval() -> None:
    found = mean_reward(torch.tensor([[0.5, 0.25]]))
    assert found.value == 0.375
    assert math.isnan(found.low)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (29, 2.04523), (255, 1.96935)],
)
def test_students_quantile_agrees_with_the_table(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


# ---- pass@k and maj@k


def test_which_k() -> None:
    assert [sizes(n) for n in (1, 2, 3, 4, 6, 8)] == [[], [2], [2, 3], [2, 4], [2, 4, 6], [2, 4, 8]]


@pytest.mark.parametrize(
    ("k", "correct", "chance"),
    [
        (1, [[True, False, False, False]], 1 / 4),
        (2, [[True, False, False, False]], 1 / 2),  # 1 − C(3,2)/C(4,2) = 1 − 3/6
        (4, [[True, False, False, False]], 1.0),
        (2, [[False] * 4], 0.0),
        (2, [[True, True, True, False]], 1.0),  # fewer wrong ones than k
        (2, [[True, False], [False, False], [True, False, False]], (1 + 0 + 2 / 3) / 3),
        (3, [[True, False], [True, False, False]], 1.0),  # the first prompt has too few
        (3, [[True, False]], None),
        (1, [], None),
    ],
)
def test_pass_by_hand(k: int, correct: list, chance: float | None) -> None:
    assert pass_at(k, correct) == (None if chance is None else pytest.approx(chance))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_is_the_share_of_subsets_with_a_right_one(k: int) -> None:
    correct = [True, False, True, False, False, False]
    subsets = list(combinations(correct, k))
    assert pass_at(k, [correct]) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("k", "answers", "correct", "share"),
    [
        (4, ["7", "7", "3", "4"], [True, True, False, False], 1.0),
        (4, ["7", "3", "3", "4"], [True, False, False, False], 0.0),
        (4, ["7", "7", "3", "3"], [True, True, False, False], 0.5),  # a tie: half of the draws are right
        (3, ["7", "3", "4"], [True, False, False], 1 / 3),
        (2, ["7", "3", "3", "3"], [True, False, False, False], 0.25),  # blocks (7, 3) and (3, 3)
        (2, ["7", "7", "3"], [True, True, False], 1.0),  # the rest is left out
        (4, ["7", None, None, None], [True, False, False, False], 1.0),  # no answer, no vote
        (2, [None, None, "7", "7"], [False, False, True, True], 0.5),
        (4, ["7", " 7. ", "$7$", "7.0"], [True, True, True, False], 0.75),  # one answer, right in 3 of 4
        (2, [None, None], [False, False], None),
        (4, ["7", "7"], [True, True], None),
    ],
)
def test_majority_by_hand(k: int, answers: list, correct: list, share: float | None) -> None:
    assert maj_at(k, [answers], [correct]) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("one", "other"),
    [("1,000", "1000"), ("16", "16.00"), (" Paris.", "paris"), ("１６", "16"), ("-0", "0"), ("+5", "5"), ("007", "7")],
)
def test_the_same_answer_written_otherwise(one: str, other: str) -> None:
    assert ballot(one) == ballot(other)


@pytest.mark.parametrize(("one", "other"), [("1,00", "100"), ("-5", "5"), ("1.5", "15"), ("x-1", "x 1"), ("10", "1")])
def test_other_answers_stay_apart(one: str, other: str) -> None:
    assert ballot(one) != ballot(other)
