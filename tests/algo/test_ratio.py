import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadyrl.algo import at_level, importance_weight, masked_weight, mismatch, product, staleness
from steadyrl.algo.ratio import first_tokens, sum_from_start, sum_over_response

# one token: π_θ = .6, π_old = .3, μ_old = .2
THETA, OLD, MU = (torch.tensor([p]).log() for p in (0.6, 0.3, 0.2))
LEVELS = ("token", "prefix", "lowest_prefix", "sequence", "geometric")


def test_the_two_factors_of_eq_5() -> None:
    torch.testing.assert_close(mismatch(OLD, MU).exp(), torch.tensor([1.5]))  # .3 / .2
    torch.testing.assert_close(staleness(THETA, OLD).exp(), torch.tensor([2.0]))  # .6 / .3
    torch.testing.assert_close(product(THETA, MU).exp(), torch.tensor([3.0]))  # .6 / .2
    torch.testing.assert_close(mismatch(OLD, MU) + staleness(THETA, OLD), product(THETA, MU))


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("token", [2.0, 0.5, 4.0, 3.0, 9.0, 0.5]),
        ("prefix", [2.0, 1.0, 4.0, 3.0, 27.0, 13.5]),
        ("lowest_prefix", [2.0, 1.0, 2.0, 3.0, 27.0, 1.5]),  # 4 · min(2, .5); .5 · min(3, 9)
        ("sequence", [4.0, 4.0, 4.0, 13.5, 13.5, 13.5]),
        ("geometric", [4 ** (1 / 3)] * 3 + [13.5 ** (1 / 3)] * 3),
    ],
)
def test_levels_by_hand(level: str, expected: list[float]) -> None:
    ratios = torch.tensor([2.0, 0.5, 4.0, 3.0, 9.0, 0.5])
    response = torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(at_level(ratios.log(), response, level=level).exp(), torch.tensor(expected))


def test_where_responses_begin() -> None:
    assert first_tokens(torch.tensor([4, 4, 5, 7, 7, 7])).tolist() == [0, 0, 2, 3, 3, 3]  # numbers may skip: empty ones
    assert first_tokens(torch.tensor([], dtype=torch.long)).tolist() == []


logs = st.floats(-30.0, 30.0, width=32)


@settings(deadline=None)
@given(responses=st.lists(st.lists(logs, max_size=6), max_size=6))
def test_levels_know_their_own_response_only(responses: list[list[float]]) -> None:
    """Empty responses included; each response alone is the definition, with loops."""
    flat = torch.tensor([x for r in responses for x in r], dtype=torch.float64)
    response = torch.tensor([i for i, r in enumerate(responses) for _ in r], dtype=torch.long)
    expected = {
        "token": [x for r in responses for x in r],
        "prefix": [sum(r[: t + 1]) for r in responses for t in range(len(r))],
        "lowest_prefix": [r[t] + min(r[:t], default=0.0) for r in responses for t in range(len(r))],
        "sequence": [sum(r) for r in responses for _ in r],
        "geometric": [sum(r) / len(r) for r in responses for _ in r],
    }
    for level in LEVELS:
        wanted = torch.tensor(expected[level], dtype=torch.float64)
        torch.testing.assert_close(at_level(flat, response, level=level), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_broken_stays_in_its_response(level: str, value: float) -> None:
    log_ratio = torch.tensor([0.1, value, 0.2, 0.3, 0.4])
    response = torch.tensor([0, 0, 0, 1, 1])
    found, clean = at_level(log_ratio, response, level=level), at_level(log_ratio[3:], response[3:], level=level)
    torch.testing.assert_close(found[3:], clean)
    if math.isnan(value):
        assert found[1].isnan()
        assert not found[3:].isnan().any()
        if level == "prefix":
            assert found[2].item() == pytest.approx(0.3)
    else:
        assert found[1].exp().item() == math.exp(value)  # infinite, or 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_factor_of_zero_makes_a_product_zero_beside_an_infinite_one(level: str) -> None:
    log_ratio = torch.tensor([math.inf, -math.inf, 0.5, math.inf, 0.1])
    response = torch.tensor([0, 0, 0, 1, 1])
    found = at_level(log_ratio, response, level=level)
    assert not found.isnan().any()
    assert found[1] == -math.inf
    assert (found[2] == -math.inf) == (level != "token")
    assert found[3] == math.inf or level == "prefix"  # there a bound that no float reaches
    assert at_level(torch.tensor([math.nan, -math.inf]), torch.tensor([0, 0]), level=level)[0].isnan()


def test_nothing_over_nothing_is_nothing() -> None:
    none = torch.tensor([-math.inf])
    for ratio in (mismatch, staleness, product):
        assert ratio(none, none).item() == -math.inf
        assert ratio(none, torch.tensor([-1.0])).item() == -math.inf
        assert ratio(torch.tensor([-1.0]), none).item() == math.inf
        assert ratio(none, torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("level", LEVELS)
def test_long_responses_neither_overflow_nor_drift(level: str) -> None:
    size = 32768
    steps = torch.full((2 * size,), 0.25)
    steps[size:] = -1e-3
    response = torch.arange(2).repeat_interleave(size)
    found = at_level(steps, response, level=level)
    assert found.isfinite().all()
    last = {"token": -1e-3, "prefix": -32.768, "lowest_prefix": -2e-3, "sequence": -32.768, "geometric": -1e-3}
    assert found[-1].item() == pytest.approx(last[level], rel=1e-5)
    assert importance_weight(found, cap=5.0).isfinite().all()


def test_sums_from_the_start_include_the_token_itself() -> None:
    response = torch.tensor([0, 0, 1])
    values = torch.tensor([1.0, 2.0, 4.0])
    assert sum_from_start(values, response).tolist() == [1.0, 3.0, 4.0]
    assert sum_over_response(values, response).tolist() == [3.0, 3.0, 4.0]


def test_weight_is_truncated_above_the_cap_and_nowhere_else() -> None:
    ratios = torch.tensor([0.001, 1.0, 4.99, 5.0, 5.01, 400.0])
    kept = torch.tensor([0.001, 1.0, 4.99, 5.0, 5.0, 5.0])
    torch.testing.assert_close(importance_weight(ratios.log(), cap=5.0), kept)
    torch.testing.assert_close(importance_weight(ratios.log(), cap=None), ratios)


def test_a_ratio_beyond_float_is_the_cap() -> None:
    beyond = torch.tensor([1000.0, -1000.0])
    assert importance_weight(beyond, cap=5.0).tolist() == [5.0, 0.0]
    assert importance_weight(beyond, cap=None).tolist() == [float("inf"), 0.0]
    assert masked_weight(beyond, low=0.0, high=5.0).tolist() == [0.0, 0.0]


def test_a_weight_outside_the_band_is_zero_and_on_its_edge_whole() -> None:
    ratios = torch.tensor([0.49, 0.5, 1.0, 4.0, 4.01]).log()  # exp(log) of .5 and 4 is exact
    assert masked_weight(ratios, low=0.5, high=4.0).tolist() == [0.0, 0.5, 1.0, 4.0, 0.0]
    assert masked_weight(torch.tensor([math.nan]), low=0.5, high=4.0).isnan().all()


@pytest.mark.parametrize("cap", [5.0, None])
def test_weight_has_no_gradient(cap: float | None) -> None:
    assert not importance_weight(torch.zeros(3, requires_grad=True), cap=cap).requires_grad
    assert not masked_weight(torch.zeros(3, requires_grad=True), low=0.0, high=2.0).requires_grad
