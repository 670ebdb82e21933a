"""Which tokens may still move the policy: the mask M_t of eq. 7, arXiv 2512.01374."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Clipped(NamedTuple):
    """Tokens that are masked on each side."""

    low: Bool[Tensor, "tokens"]
    """Â < 0 and r_t < 1 − ε_low: already pushed down enough."""
    high: Bool[Tensor, "tokens"]
    """Â > 0 and r_t > 1 + ε_high: already pushed up enough."""

    @property
    def kept(self) -> Bool[Tensor, "tokens"]:
        """M_t = 1."""
        return ~(self.low | self.high)


def decoupled_clip(
    log_ratio: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    *,
    low: float,
    high: float,
) -> Clipped:
    """The clip of decoupled PPO: M_t = 0 iff Â>0 and r_t > 1+ε_high, or Â<0 and r_t < 1−ε_low.

    Args:
        log_ratio: log r_t = log π_θ(y_t)/π_old(y_t), both from the training engine.
        advantages: Â of each token's response.
        low: ε_low.
        high: ε_high.
    """
    ratio = log_ratio.detach().exp()
    return Clipped(
        low=(advantages < 0) & (ratio < 1.0 - low),
        high=(advantages > 0) & (ratio > 1.0 + high),
    )


def unclipped(advantages: Float[Tensor, "tokens"]) -> Clipped:
    """M_t = 1 everywhere: the paper's arms without clipping."""
    nothing = torch.zeros_like(advantages, dtype=torch.bool)
    return Clipped(low=nothing, high=nothing)
