import pytest
import torch

from steadyrl.algo import discrepancy, importance_weight, staleness

# one token: π_θ = .6, π_old = .3, μ_old = .2
THETA, OLD, MU = (torch.tensor([p]).log() for p in (0.6, 0.3, 0.2))


def test_the_two_factors_of_eq_5() -> None:
    torch.testing.assert_close(discrepancy(OLD, MU).exp(), torch.tensor([1.5]))  # .3 / .2
    torch.testing.assert_close(staleness(THETA, OLD).exp(), torch.tensor([2.0]))  # .6 / .3
    torch.testing.assert_close(discrepancy(OLD, MU) + staleness(THETA, OLD), THETA - MU)  # π_θ/μ = 3 = 1.5 · 2


def test_weight_is_truncated_above_the_cap_and_nowhere_else() -> None:
    ratios = torch.tensor([0.001, 1.0, 4.99, 5.0, 5.01, 400.0])
    kept = torch.tensor([0.001, 1.0, 4.99, 5.0, 5.0, 5.0])
    torch.testing.assert_close(importance_weight(ratios.log(), cap=5.0), kept)
    torch.testing.assert_close(importance_weight(ratios.log(), cap=None), ratios)


def test_a_ratio_beyond_float_is_the_cap() -> None:
    beyond = torch.tensor([1000.0, -1000.0])
    assert importance_weight(beyond, cap=5.0).tolist() == [5.0, 0.0]
    assert importance_weight(beyond, cap=None).tolist() == [float("inf"), 0.0]


@pytest.mark.parametrize("cap", [5.0, None])
def test_weight_has_no_gradient(cap: float | None) -> None:
    assert not importance_weight(torch.zeros(3, requires_grad=True), cap=cap).requires_grad
