import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyrl.algo import gradient_gap, gram, surrogate_error, value_gap
from steadyrl.algo.surrogate import mean_interval, worst_delta


def test_the_gap_of_the_values_by_hand() -> None:
    # r = 2, 3 | ½, 2 | 4: 1 + 3 − 6 = −2; 1 + ½ − 1 = ½; 1 + 3 − 4 = 0
    log_ratio = torch.tensor([2.0, 3.0, 0.5, 2.0, 4.0]).log()
    gap = value_gap(log_ratio, torch.tensor([0, 0, 1, 1, 2]))
    wide = torch.tensor([-2.0, 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(gap.difference, wide, atol=1e-6, rtol=0)
    torch.testing.assert_close(gap.bound, wide.abs(), atol=1e-6, rtol=0)  # one product each: no signs to cancel
    # 2, ½, 2: (2−1)(1−1) + (½−1)(1−2) + 0 = ½; with other signs, 3, ½, 2, ½: (2)(1−½) + (−½)(1−1) + (1)(1−½) = 3/2
    gap = value_gap(torch.tensor([3.0, 0.5, 2.0, 0.5]).log(), torch.zeros(4, dtype=torch.long))
    assert gap.difference.item() == pytest.approx(1.5, abs=1e-6)
    # ½, ½, 2, 2: (−½)(1−2) + (−½)(1−4) + (1)(1−2) = ½ + 3/2 − 1 = 1, and in size 3
    gap = value_gap(torch.tensor([0.5, 0.5, 2.0, 2.0]).log(), torch.zeros(4, dtype=torch.long))
    assert gap.difference.item() == pytest.approx(1.0, abs=1e-6)
    assert gap.bound.item() == pytest.approx(3.0, abs=1e-6)


@settings(deadline=None)
@given(responses=st.lists(st.lists(st.floats(-2, 2), min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_gap_is_first_order_less_product(responses: list[list[float]]) -> None:
    flat = torch.tensor([x for r in responses for x in r], dtype=torch.float64)
    gap = value_gap(flat, torch.arange(len(responses)).repeat_interleave(torch.tensor([len(r) for r in responses])))
    expected = [1 + sum(math.expm1(x) for x in r) - math.exp(sum(r)) for r in responses]
    torch.testing.assert_close(gap.difference, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    assert (gap.bound >= gap.difference.abs() - 1e-9).all()


def test_long_responses_do_not_overflow() -> None:
    gap = value_gap(torch.full((32768,), 0.5), torch.zeros(32768, dtype=torch.long))
    assert gap.difference.isfinite().all()
    assert surrogate_error(gap, torch.ones(1))["value_gap"] > 1e100  # e^300 for e^16384
    gap = value_gap(torch.full((32768,), -math.inf), torch.zeros(32768, dtype=torch.long))
    assert not gap.difference.isnan().any()


def test_the_error_of_the_surrogate_by_hand() -> None:
    gap = value_gap(torch.tensor([2.0, 3.0, 0.5, 2.0]).log(), torch.tensor([0, 0, 1, 1]))  # −2 and ½
    said = surrogate_error(gap, torch.tensor([1.0, -2.0]))  # R · difference = −2, −1
    margin = 1.96 * math.sqrt(0.5 / 2)
    assert said == {
        "delta": pytest.approx(-1.5),
        "delta_low": pytest.approx(-1.5 - margin),
        "delta_high": pytest.approx(-1.5 + margin),
        "delta_bound": pytest.approx(1.5),  # (1 · 2 + 2 · ½) / 2
        "value_gap": pytest.approx(1.25),
    }


def test_responses_that_earned_what_the_others_did_add_nothing_and_count() -> None:
    # two of five responses were updated, R less that of the others 1 and −2; the others add 0: −3/5
    gap = value_gap(torch.tensor([2.0, 3.0, 0.5, 2.0]).log(), torch.tensor([0, 0, 1, 1]))  # −2 and ½
    said = surrogate_error(gap, torch.tensor([1.0, -2.0]), responses=5)
    values = [-2.0, -1.0, 0.0, 0.0, 0.0]
    margin = 1.96 * math.sqrt(sum((v + 0.6) ** 2 for v in values) / 4 / 5)
    assert said["delta"] == pytest.approx(-0.6)
    assert said["delta_high"] - said["delta"] == pytest.approx(margin)
    assert said["delta_bound"] == pytest.approx(3 / 5)
    assert said["value_gap"] == pytest.approx(1.25)  # of what was updated
    # nor does it matter whether one of them was computed
    assert surrogate_error(gap, torch.tensor([0.0, -2.0]), responses=5)["delta"] == pytest.approx(-0.2)
    assert surrogate_error(gap, torch.tensor([0.0, -2.0]))["delta"] == pytest.approx(-0.5)


def test_infinite_ratios_beside_zero_ones_have_a_gap() -> None:
    gap = value_gap(torch.tensor([math.inf, -math.inf, 0.1]), torch.tensor([0, 0, 0]))
    assert gap.difference.isfinite().all()
    assert gap.bound.isfinite().all()


def test_a_single_value_has_no_interval() -> None:
    assert mean_interval(torch.tensor([3.0])) == (3.0, -math.inf, math.inf)


def test_the_worst_case_by_hand() -> None:
    assert worst_delta(tokens=3, divergence=0.1, reward=2.0) == pytest.approx(2 * 2 * 3 * 2 * 0.01)
    assert worst_delta(tokens=1, divergence=0.9, reward=5.0) == 0.0  # a single token: eq. 3 is eq. 1


def test_cosine_and_error_by_hand() -> None:
    # sums over two responses: g = (3, 0), G = (3, 4): cosine 9/15, error 4/5
    token = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    sequence = torch.tensor([[1.0, 2.0], [2.0, 2.0]])
    for scale in (1.0, 1e-3):
        gap = gradient_gap(gram(scale * token, scale * sequence))
        assert gap.cosine.value == pytest.approx(0.6)
        assert gap.relative_error.value == pytest.approx(0.8)


def test_equal_gradients_have_no_gap_and_opposite_ones_the_largest() -> None:
    parts = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    same, opposite = gradient_gap(gram(parts, parts)), gradient_gap(gram(parts, -parts))
    assert same.cosine == pytest.approx((1.0, 1.0, 1.0))
    assert same.relative_error == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert opposite.cosine == pytest.approx((-1.0, -1.0, -1.0))
    assert opposite.relative_error == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize("seed", range(20))
def test_rounding_takes_no_cosine_beyond_one(seed: int) -> None:
    parts = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    along, against = gradient_gap(gram(0.7 * parts, parts)).cosine, gradient_gap(gram(-0.7 * parts, parts)).cosine
    assert max(along) <= 1.0
    assert min(against) >= -1.0


def test_the_interval_is_that_of_the_flattened_gradients() -> None:
    """Inner products say what the sums of the drawn rows say."""
    generator = torch.Generator().manual_seed(1)
    sequence = torch.randn(20, 5, generator=generator, dtype=torch.float64) + 0.5
    token = sequence + 0.3 * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    gap = gradient_gap(gram(token, sequence), resamples=300, seed=7)
    draws = torch.randint(20, (300, 20), generator=torch.Generator().manual_seed(7))
    drawn = [(token[d].sum(0), sequence[d].sum(0)) for d in draws]
    errors = torch.stack([(g - s).norm() / s.norm() for g, s in drawn])
    cosines = torch.stack([torch.cosine_similarity(g, s, dim=0) for g, s in drawn])
    whole = torch.cosine_similarity(token.sum(0), sequence.sum(0), dim=0).item()
    assert gap.cosine.value == pytest.approx(whole)  # of the batch itself, not of a draw
    for found, values in ((gap.relative_error, errors), (gap.cosine, cosines)):
        wanted = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        assert [found.low, found.high] == pytest.approx(wanted)
        assert found.low < found.high


def test_a_model_in_pieces_gives_the_same_products() -> None:
    token, sequence = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    pieces = gram(token[:, :5], sequence[:, :5]) + gram(token[:, 5:], sequence[:, 5:])
    torch.testing.assert_close(pieces, gram(token, sequence))


def test_a_gradient_without_direction_is_refused() -> None:
    good, bad = torch.ones(2, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"are 0 \(token level\) and 12 \(sequence level\)"):
        gradient_gap(gram(bad, good))
    with pytest.raises(ValueError, match=r"are 12 .* advantages that do not cancel"):
        gradient_gap(gram(good, bad))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_for_that(broken: float) -> None:
    good, bad = torch.ones(2, 3), torch.full((2, 3), broken)
    for token, sequence in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match=r"a gradient is not finite: .* a product of ratios overflows"):
            gradient_gap(gram(token, sequence))


def test_parts_that_cancel_have_no_direction_though_a_draw_of_them_may() -> None:
    good, cancelling = torch.ones(8, 1), torch.tensor([[1.0], [-1.0]]).repeat(4, 1)
    with pytest.raises(ValueError, match=r"are 0 \(token level\) and 64 \(sequence level\)"):
        gradient_gap(gram(cancelling, good))
    with pytest.raises(ValueError, match=r"are 64 \(token level\) and 0 \(sequence level\)"):
        gradient_gap(gram(good, cancelling))
