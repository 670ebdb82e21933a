"""Which tokens may still move the policy: the mask M_t of eq. 7, arXiv 2512.01374, and its alternatives.

Each function returns the masked tokens, as two columns of booleans. The log ratio sets the anchor: log π_θ/π_old
(`ratio.staleness`) measures the move from θ_old. log π_θ/μ_old (`ratio.product`) measures the move from the policy that
sampled. `advantages` holds Â of each token's response. `response` is the number of that response.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steadyrl.algo.ratio import at_level, sum_from_start


class Clipped(NamedTuple):
    """Tokens that are masked on each side."""

    low: Bool[Tensor, "tokens"]
    """Â < 0 and masked; for the clip, r_t < 1 − ε_low: already pushed down enough."""
    high: Bool[Tensor, "tokens"]
    """Â > 0 and masked; for the clip, r_t > 1 + ε_high: already pushed up enough."""

    @property
    def kept(self) -> Bool[Tensor, "tokens"]:
        """M_t = 1."""
        return ~(self.low | self.high)


def either(one: Clipped, other: Clipped) -> Clipped:
    """What one of two masks, or both, mask."""
    return Clipped(low=one.low | other.low, high=one.high | other.high)


def decoupled_clip(
    log_ratio: Float[Tensor, "tokens"], advantages: Float[Tensor, "tokens"], *, low: float, high: float
) -> Clipped:
    """The clip of PPO: M_t = 0 iff Â>0 and r_t > 1+ε_high (`high`), or Â<0 and r_t < 1−ε_low (`low`).

    `log_ratio` is log r_t; decoupled PPO, and eq. 7, take π_θ/π_old, both from the training engine.
    """
    ratio = log_ratio.exp()
    return Clipped(low=(advantages < 0) & (ratio < 1.0 - low), high=(advantages > 0) & (ratio > 1.0 + high))


def binary_tv(logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """|μ(y_t) − π(y_t)|: total variation of "this token or another" (DPPO, arXiv 2602.04879)."""
    return (rollout_logprobs.exp() - logprobs.exp()).abs()


def binary_kl(logprobs: Float[Tensor, "tokens"], rollout_logprobs: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """μ log(μ/π) + (1−μ) log((1−μ)/(1−π)), in nats: D_KL[μ‖π] of "this token or another" (DPPO).

    1 − π is taken to be at least the rounding step of the numbers: a log π of 0 only says that 1 − π is smaller than
    that. So D is infinite only where π = 0.
    """
    other = -rollout_logprobs.expm1()
    our_other = (-logprobs.expm1()).clamp(min=torch.finfo(logprobs.dtype).eps)
    rest = torch.xlogy(other, other) - torch.xlogy(other, our_other)  # 0 · log 0 = 0
    sampled = rollout_logprobs.exp() * (rollout_logprobs - logprobs)
    return sampled.masked_fill(rollout_logprobs == -torch.inf, 0.0) + rest


def divergence_mask(
    divergence: Float[Tensor, "tokens"],
    log_ratio: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    *,
    threshold: float,
) -> Clipped:
    """DPPO, arXiv 2602.04879: masked iff D > δ and the update moves outward, Â>0 and r>1 or Â<0 and r<1.

    `divergence` is D of μ and π at each token, `binary_tv` (`threshold` δ = 0.15) or `binary_kl` (δ = 0.05);
    `log_ratio` is log π_θ/μ_old.
    """
    far = divergence > threshold
    return Clipped(low=far & (advantages < 0) & (log_ratio < 0), high=far & (advantages > 0) & (log_ratio > 0))


def off_policy_sequence_mask(
    log_ratio: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    response: Int[Tensor, "tokens"],
    *,
    threshold: float,
) -> Clipped:
    """OPSM of DeepSeek-V3.2, eq. 9 of arXiv 2512.02556: masked iff Â<0 and the response's mean of −log r_t exceeds δ.

    `log_ratio` is log π_θ/μ_old. The source uses the probabilities that the sampling engine returned, so both factors
    of eq. 5 count. `threshold` is δ in nats per token; the source gives no value.
    """
    far = -at_level(log_ratio, response, level="geometric") > threshold
    return Clipped(low=far & (advantages < 0), high=torch.zeros_like(far))


def second_moment_mask(
    log_ratio: Float[Tensor, "tokens"],
    advantages: Float[Tensor, "tokens"],
    response: Int[Tensor, "tokens"],
    *,
    threshold: float,
) -> Clipped:
    """M2PO, Algorithm 1 of arXiv 2510.01161: the largest |log r_t| are masked until mean (log r)² ≤ τ = 0.04.

    Only tokens that the update moves outward, Â>0 and r>1 or Â<0 and r<1, are counted in the mean and masked.
    `log_ratio` is log π_θ/μ_old; `threshold` is τ. The source takes the mean over the batch. Here it runs over each
    response, so that no cut into micro-batches changes the mask; if it holds in every response it holds in the batch.
    """
    outward = log_ratio.sign() * advantages.sign() > 0
    square = log_ratio.square().where(outward, 0.0)
    order = square.argsort(stable=True)
    order = order[response[order].argsort(stable=True)]  # by response, and within it from small to large
    count = sum_from_start(outward[order].to(square.dtype), response)
    ascending = sum_from_start(square[order], response) / count
    outlier = torch.empty_like(order, dtype=torch.bool)
    outlier[order] = ~(ascending <= threshold)
    outlier &= outward
    return Clipped(low=outlier & (advantages < 0), high=outlier & (advantages > 0))
