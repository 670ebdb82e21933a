"""What is measured each step: both factors of eq. 5 (arXiv 2512.01374), before anything is truncated.

The estimators follow Schulman's notation, for x ~ q and ρ = p(x)/q(x): k1 = −log ρ and k3 = ρ − 1 − log ρ both have
the mean D_KL[q‖p]; k3 is never negative and varies less when p is near q.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.types import Routes


def k1(log_ratio: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """E_q[−log ρ], the plain estimator of D_KL[q‖p]; `log_ratio` is log p − log q of tokens sampled from q."""
    return -log_ratio.mean()


def k3(log_ratio: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """E_q[ρ − 1 − log ρ], the non-negative estimator of D_KL[q‖p]."""
    return (log_ratio.expm1() - log_ratio).mean()


def effective_sample_size(log_weight: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """(Σw)² / (n Σw²), in (0, 1]: the share of tokens that the weighted average rests on (Kish)."""
    shifted = (log_weight - log_weight.max()).exp()  # the ratio does not change, and nothing overflows
    return shifted.sum().square() / (shifted.numel() * shifted.square().sum())


def mismatch(log_ratio: Float[Tensor, "tokens"]) -> dict[str, float]:
    """The discrepancy between the two engines on the same weights, from log π_old/μ_old."""
    size = log_ratio.abs()
    return {
        "mismatch/k1": k1(log_ratio).item(),
        "mismatch/k3": k3(log_ratio).item(),
        "mismatch/abs_mean": size.mean().item(),
        "mismatch/abs_max": size.max().item(),
    }


def drift(log_ratio: Float[Tensor, "tokens"]) -> dict[str, float]:
    """The staleness of the policy, from log π_θ/π_old."""
    ratio = log_ratio.exp()
    return {
        "staleness/mean": ratio.mean().item(),
        "staleness/max": ratio.max().item(),
        "staleness/k3": k3(log_ratio).item(),
    }


def weights(log_weight: Float[Tensor, "tokens"]) -> dict[str, float]:
    """The importance weight, before any truncation, from log π_θ/μ_old: the sum of the two logs above."""
    weight = log_weight.exp()
    return {
        "weight/mean": weight.mean().item(),
        "weight/max": weight.max().item(),
        "weight/ess": effective_sample_size(log_weight).item(),
    }


def routes_differ(mine: Routes, theirs: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether two expert *sets* differ, for each fed position and layer; the order within a set means nothing."""
    return (_ordered(mine) != _ordered(theirs)).any(dim=-1)


def route_disagreement(mine: Routes, theirs: Routes) -> Float[Tensor, "positions"]:
    """Share of layers whose expert sets differ, for each fed position."""
    return routes_differ(mine, theirs).float().mean(dim=-1)


def _ordered(routes: Routes) -> Tensor:
    return routes.to(torch.int32).sort(dim=-1).values
