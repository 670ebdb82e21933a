import math

import pytest
import torch

from steadyrl.algo import (
    binary_kl,
    binary_tv,
    decoupled_clip,
    divergence_mask,
    off_policy_sequence_mask,
    second_moment_mask,
)


def test_each_side_by_hand() -> None:
    # ε_low = .2, ε_high = .27: Â > 0 is masked above 1.27, Â < 0 below .8; the other two corners bring r back to 1
    ratio = torch.tensor([1.26, 1.28, 0.81, 0.79, 0.10, 9.00])
    sides = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    clipped = decoupled_clip(ratio.log(), sides, low=0.2, high=0.27)
    assert clipped.high.tolist() == [False, True, False, False, False, False]
    assert clipped.low.tolist() == [False, False, False, True, False, False]
    assert clipped.kept.tolist() == [True, False, True, False, True, True]


def test_the_boundary_is_kept() -> None:
    # 1.25 and .75 are exact in binary, and so is exp(log) of both here
    boundary = torch.tensor([1.25, 0.75]).log()
    assert boundary.exp().tolist() == [1.25, 0.75]
    sides = torch.tensor([1.0, -1.0])
    assert decoupled_clip(boundary, sides, low=0.25, high=0.25).kept.all()
    outside = boundary + 1e-6 * sides
    assert not decoupled_clip(outside, sides, low=0.25, high=0.25).kept.any()


def test_no_advantage_is_never_masked() -> None:
    ratio = torch.tensor([1e-9, 0.5, 1.0, 2.0, 1e9]).log()
    zero, response = torch.zeros(5), torch.zeros(5, dtype=torch.long)
    assert decoupled_clip(ratio, zero, low=0.2, high=0.27).kept.all()
    assert divergence_mask(ratio.abs(), ratio, zero, threshold=0.1).kept.all()
    assert off_policy_sequence_mask(ratio, zero, response, threshold=-100.0).kept.all()
    assert second_moment_mask(ratio, zero, response, threshold=0.04).kept.all()


def test_binary_divergences_by_hand() -> None:
    ours, theirs = torch.tensor([0.5, 0.2, 0.3]).log(), torch.tensor([0.25, 0.6, 0.3]).log()
    torch.testing.assert_close(binary_tv(ours, theirs), torch.tensor([0.25, 0.4, 0.0]))
    first = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    second = 0.6 * math.log(3) + 0.4 * math.log(0.5)
    torch.testing.assert_close(binary_kl(ours, theirs), torch.tensor([first, second, 0.0]), atol=1e-7, rtol=1e-5)


def test_binary_kl_at_certainty() -> None:
    # μ = 1: 1 · log(1/½), the rest is 0 · log 0; π = 1 where μ = ½: infinitely far
    theirs, ours = torch.tensor([1.0, 0.5, 1.0]).log(), torch.tensor([0.5, 1.0, 1.0]).log()
    torch.testing.assert_close(binary_kl(ours, theirs), torch.tensor([math.log(2), math.inf, 0.0]))


def test_a_divergence_masks_what_is_far_and_moves_outward() -> None:
    #             outward, far | at the threshold | inward, far | outward, near | r = 1, far
    log_ratio = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 0.0, 0.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    divergence = torch.tensor([0.51, 0.51, 0.5, 0.5, 0.9, 0.9, 0.1, 0.1, 0.9, 0.9])
    clipped = divergence_mask(divergence, log_ratio, advantages, threshold=0.5)
    assert clipped.high.nonzero().flatten().tolist() == [0]
    assert clipped.low.nonzero().flatten().tolist() == [1]


def test_a_response_far_below_is_masked_where_its_advantage_is_negative() -> None:
    log_ratio = torch.tensor([-1.0, 0.0, -0.5, -0.5, -1.0, 1.5])  # means of −log r: ½, ½, −¼
    response = torch.tensor([0, 0, 1, 1, 2, 2])
    advantages = torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    for threshold, expected in ((0.49, [0, 1]), (0.5, []), (-0.3, [0, 1, 4, 5])):
        clipped = off_policy_sequence_mask(log_ratio, advantages, response, threshold=threshold)
        assert clipped.low.nonzero().flatten().tolist() == expected
        assert not clipped.high.any()


def test_outliers_are_masked_until_the_second_moment_is_small() -> None:
    # squares 0, 9, 1, 4 | 1: means of the smallest 1, 2, 3, 4 of the first are 0, ½, 5/3, 7/2
    log_ratio = torch.tensor([0.0, -3.0, 1.0, 2.0, -1.0])
    response = torch.tensor([0, 0, 0, 0, 1])
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    for threshold, masked in ((0.4, [1, 2, 3, 4]), (0.5, [1, 3, 4]), (1.0, [1, 3]), (1.7, [1]), (3.5, [])):
        clipped = second_moment_mask(log_ratio, advantages, response, threshold=threshold)
        assert (~clipped.kept).nonzero().flatten().tolist() == masked
        assert clipped.low.nonzero().flatten().tolist() == [i for i in masked if i == 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_ratio_is_an_outlier(value: float) -> None:
    clipped = second_moment_mask(torch.tensor([value]), torch.ones(1), torch.zeros(1, dtype=torch.long), threshold=9.0)
    assert clipped.high.all()


def test_of_equal_outliers_the_last_are_masked() -> None:
    # 32 zeros and 32 ones, in turns: with n ones kept the mean is n/(32 + n), 10/42 = .238, 11/43 = .256
    log_ratio, one = torch.tensor([0.0, 1.0]).repeat(32), torch.zeros(64, dtype=torch.long)
    clipped = second_moment_mask(log_ratio, torch.ones(64), one, threshold=0.25)
    assert clipped.high.nonzero().flatten().tolist() == list(range(21, 64, 2))


def test_one_infinite_ratio_is_an_outlier_however_long_the_response() -> None:
    log_ratio = torch.zeros(32768)
    log_ratio[7] = -math.inf
    clipped = second_moment_mask(log_ratio, -torch.ones(32768), torch.zeros(32768, dtype=torch.long), threshold=0.04)
    assert clipped.low.nonzero().flatten().tolist() == [7]
