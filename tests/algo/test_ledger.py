import math

import pytest
import torch

from steadyrl.algo import ledger

# q = (½, ¼, ¼), p = (¼, ¼, ½). Four tokens as often as q has them: a a b c. So a mean over them is an expectation.
Q = torch.tensor([1 / 2, 1 / 2, 1 / 4, 1 / 4]).log()
P = torch.tensor([1 / 4, 1 / 4, 1 / 4, 1 / 2]).log()
KL = math.log(2) / 4  # ½·ln 2 + ¼·0 − ¼·ln 2


def test_k1_and_k3_are_the_divergence_under_q() -> None:
    assert ledger.k1(P - Q).item() == pytest.approx(KL)
    assert ledger.k3(P - Q).item() == pytest.approx(KL)


def test_k3_is_never_negative_and_exact_near_zero() -> None:
    assert all(ledger.k3(x[None]) >= 0 for x in torch.linspace(-4, 4, 41))
    assert ledger.k3(torch.tensor([1e-3], dtype=torch.float64)).item() == pytest.approx(5e-7, rel=1e-3)  # x²/2
    assert ledger.k1(torch.tensor([2.0])) == -2.0


def test_effective_sample_size() -> None:
    assert ledger.effective_sample_size(torch.full((7,), -3.0)) == 1.0
    assert ledger.effective_sample_size(torch.tensor([50.0, 0, 0, 0])).item() == pytest.approx(1 / 4)
    # weights 1, 1, 2: (1+1+2)² / (3 · (1+1+4)) = 16/18
    weights = torch.tensor([1.0, 1.0, 2.0]).log()
    for shift in (0.0, 1000.0, -1000.0):  # nothing overflows
        assert ledger.effective_sample_size(weights + shift).item() == pytest.approx(16 / 18, rel=1e-3)


def test_mismatch_by_hand() -> None:
    metrics = ledger.mismatch(P - Q)  # log ratios −ln 2, −ln 2, 0, ln 2
    assert metrics == {
        "mismatch/k1": pytest.approx(KL),
        "mismatch/k3": pytest.approx(KL),
        "mismatch/abs_mean": pytest.approx(3 / 4 * math.log(2)),
        "mismatch/abs_max": pytest.approx(math.log(2)),
    }


def test_drift_by_hand() -> None:
    metrics = ledger.drift(P - Q)  # ratios ½, ½, 1, 2
    assert metrics == {
        "staleness/mean": pytest.approx(1.0),
        "staleness/max": pytest.approx(2.0),
        "staleness/k3": pytest.approx(KL),
    }


def test_weights_by_hand() -> None:
    metrics = ledger.weights(P - Q)  # ½, ½, 1, 2
    assert metrics == {
        "weight/mean": pytest.approx(1.0),
        "weight/max": pytest.approx(2.0),
        "weight/ess": pytest.approx(16 / (4 * 5.5)),  # (Σw)² / (n Σw²) = 4² / (4 · (¼ + ¼ + 1 + 4))
    }


def test_route_disagreement_counts_layers_and_ignores_order() -> None:
    # 3 positions, 2 layers, 2 slots
    mine = torch.tensor([[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [2, 3]]], dtype=torch.uint8)
    theirs = torch.tensor([[[1, 0], [3, 2]], [[1, 0], [2, 7]], [[0, 7], [7, 3]]], dtype=torch.uint8)
    assert ledger.route_disagreement(mine, theirs).tolist() == [0.0, 0.5, 1.0]


def test_route_disagreement_of_many_experts() -> None:
    mine = torch.tensor([[[300, 2]]], dtype=torch.uint16)
    assert ledger.route_disagreement(mine, torch.tensor([[[2, 300]]], dtype=torch.uint16)).tolist() == [0.0]
    assert ledger.route_disagreement(mine, torch.tensor([[[2, 44]]], dtype=torch.uint16)).tolist() == [1.0]  # 300 − 256
