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
    # μ = 1: 1 · log(1/½), the rest is 0 · log 0; π = 1 where μ = ½: ½ log ½ + ½ log(½/2⁻²³)
    theirs, ours = torch.tensor([1.0, 0.5, 1.0]).log(), torch.tensor([0.5, 1.0, 1.0]).log()
    half = 0.5 * math.log(0.5) + 0.5 * math.log(0.5 * 2**23)
    torch.testing.assert_close(binary_kl(ours, theirs), torch.tensor([math.log(2), half, 0.0]))


def test_a_nearly_certain_token_is_not_infinitely_far() -> None:
    # μ = 1 − 10⁻⁴; log π = −10⁻⁹ is 0 in float32. D is about 10⁻⁴ (log(10⁻⁴ · 2²³) − 1), not infinite
    theirs, ours = torch.tensor([1.0 - 1e-4]).log(), torch.tensor([0.0])
    found = binary_kl(ours, theirs).item()
    assert found == pytest.approx(1e-4 * (math.log(1e-4 * 2**23) - 1), rel=0.01)
    assert divergence_mask(torch.tensor([found]), ours - theirs, torch.ones(1), threshold=0.05).kept.all()
    exact = binary_kl(torch.tensor([-1e-9], dtype=torch.float64), theirs.double()).item()
    assert exact == pytest.approx(1e-4 * (math.log(1e-4 / 1e-9) - 1), rel=0.01)


def test_binary_divergences_of_impossible_tokens_are_no_nan() -> None:
    ours, theirs = torch.tensor([-math.inf, -1.0, -math.inf]), torch.tensor([-1.0, -math.inf, -math.inf])
    # π = 0: infinitely far; μ = 0: −log(1−π); both: the same
    expected = torch.tensor([math.inf, -math.log1p(-math.exp(-1.0)), 0.0])
    torch.testing.assert_close(binary_kl(ours, theirs), expected)
    assert not binary_tv(ours, theirs).isnan().any()


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
    # moved outward: squares 9, 1, 4 of the first response, means of the smallest 1, 2, 3: 1, 5/2, 14/3. The other
    # tokens are moved back, or not at all: they count in no mean
    log_ratio = torch.tensor([0.0, -3.0, 1.0, 2.0, 5.0, -1.0])
    response = torch.tensor([0, 0, 0, 0, 0, 1])
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    for threshold, masked in ((0.9, [1, 2, 3]), (1.0, [1, 3]), (2.4, [1, 3]), (2.5, [1]), (4.6, [1]), (4.7, [])):
        clipped = second_moment_mask(log_ratio, advantages, response, threshold=threshold)
        assert (~clipped.kept).nonzero().flatten().tolist() == masked
        assert clipped.low.nonzero().flatten().tolist() == [i for i in masked if i == 1]


def test_about_half_of_the_outliers_move_outward() -> None:
    """16 responses of 64 tokens, log ratios of deviation ¼, 5% of them four times as far out."""
    draw = torch.Generator().manual_seed(0)
    log_ratio = 0.25 * torch.randn(1024, generator=draw)
    wild = torch.randperm(1024, generator=draw)[:51]
    log_ratio[wild] *= 4.0
    advantages = torch.tensor([1.0, -1.0]).repeat(8).repeat_interleave(64)
    response = torch.arange(16).repeat_interleave(64)
    clipped = second_moment_mask(log_ratio, advantages, response, threshold=0.04)
    outward = log_ratio * advantages > 0
    expected = torch.zeros(1024, dtype=torch.bool)
    for number in range(16):  # as Algorithm 1: the largest goes until the mean of the others is small enough
        left = [i for i in range(1024) if response[i] == number and outward[i]]
        left.sort(key=lambda i: abs(log_ratio[i].item()))
        while left and sum(log_ratio[i].item() ** 2 for i in left) / len(left) > 0.04:
            expected[left.pop()] = True
    assert torch.equal(~clipped.kept, expected)
    assert 0.05 < expected.float().mean().item() < 0.08  # 12 to 14% if all tokens were counted


def test_an_infinite_ratio_is_an_outlier_and_a_nan_is_kept_to_be_seen() -> None:
    one = {"advantages": torch.ones(1), "response": torch.zeros(1, dtype=torch.long)}
    assert second_moment_mask(torch.tensor([math.inf]), **one, threshold=9.0).high.all()
    assert second_moment_mask(torch.tensor([math.nan]), **one, threshold=9.0).kept.all()


def test_of_equal_outliers_the_last_are_masked() -> None:
    # 32 small ones and 32 of size 1, in turns: with n of these kept the mean is n/(32 + n), 10/42 = .238, 11/43 = .256
    log_ratio, one = torch.tensor([1e-6, 1.0]).repeat(32), torch.zeros(64, dtype=torch.long)
    clipped = second_moment_mask(log_ratio, torch.ones(64), one, threshold=0.25)
    assert clipped.high.nonzero().flatten().tolist() == list(range(21, 64, 2))


def test_one_infinite_ratio_is_an_outlier_however_long_the_response() -> None:
    log_ratio = torch.zeros(32768)
    log_ratio[7] = -math.inf
    clipped = second_moment_mask(log_ratio, -torch.ones(32768), torch.zeros(32768, dtype=torch.long), threshold=0.04)
    assert clipped.low.nonzero().flatten().tolist() == [7]
