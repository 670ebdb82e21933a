"""Eq. 5 of arXiv 2512.01374: π_θ/μ_old = π_old/μ_old × π_θ/π_old, discrepancy of the engines times staleness."""

from jaxtyping import Float
from torch import Tensor


def discrepancy(
    old_logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]
) -> Float[Tensor, "tokens"]:
    """log π_old(y_t)/μ_old(y_t): how far the two engines differ on the same weights (first factor of eq. 5)."""
    return old_logprobs - rollout_logprobs


def staleness(logprobs: Float[Tensor, "tokens"], old_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """log π_θ(y_t)/π_old(y_t): how far the policy has moved since it sampled (second factor of eq. 5)."""
    return logprobs - old_logprobs


def importance_weight(log_ratio: Float[Tensor, "tokens"], *, cap: float | None) -> Float[Tensor, "tokens"]:
    """min(exp(log_ratio), cap), without gradient: truncated importance sampling (TIS).

    Args:
        log_ratio: log of the ratio of two policies, per token.
        cap: truncation from above; None leaves the ratio as it is.
    """
    weight = log_ratio.detach().exp()
    return weight if cap is None else weight.clamp(max=cap)
