"""Advantages relative to the group of responses to the same prompt, and the filters of GRPO-like recipes.

Rewards are float32 numbers. Sums that a verifier adds up in another order differ in the last bits and mean the same, so
a group whose spread is below 8 · 2⁻²³ · max |R| counts as a group of equal rewards everywhere.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ROUNDING = 8 * 2.0**-23
"""Rewards of a group that differ by less than this share of the largest are equal."""


def group_advantage(
    rewards: Float[Tensor, "prompts responses"], *, normalise: bool, epsilon: float = 0.0
) -> Float[Tensor, "prompts responses"]:
    """Â = R − mean(R) over the group, divided by the group's standard deviation plus `epsilon` if `normalise`.

    MiniRL (arXiv 2512.01374, §3) does not divide; GRPO and CISPO (its Appendix A) do. The standard deviation is the
    population's; a group of equal rewards, or of one response, gets zeros either way.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if normalise:
        centred = centred / (rewards.std(dim=1, correction=0, keepdim=True) + epsilon)
    return centred.masked_fill(_uniform(rewards), 0.0)  # the mean of equal rewards is rounded, and 0/0 is NaN


def leave_one_out(rewards: Float[Tensor, "prompts responses"]) -> Float[Tensor, "prompts responses"]:
    """Â_i = R_i − mean of R_j over the others of the group, j ≠ i (RLOO, arXiv 2402.14740): G/(G−1) of the centred.

    The baseline does not depend on the response's own reward, which makes the estimate unbiased.

    Raises:
        ValueError: the groups have one response, which has no others.
    """
    size = rewards.shape[1]
    if size == 1:
        raise ValueError("leave_one_out needs groups of at least 2 responses, found 1; sample more per prompt")
    return group_advantage(rewards, normalise=False) * (size / (size - 1))


def informative(rewards: Float[Tensor, "prompts responses"]) -> Bool[Tensor, "prompts"]:
    """Groups whose rewards differ: what DAPO's dynamic sampling (arXiv 2503.14476) keeps."""
    return ~_uniform(rewards).squeeze(1)


def without_truncated(
    advantages: Float[Tensor, "prompts responses"], truncated: Bool[Tensor, "prompts responses"]
) -> Float[Tensor, "prompts responses"]:
    """Â = 0 for responses cut at the length limit (DAPO's overlong filtering); they still count in the baseline."""
    return advantages.masked_fill(truncated, 0.0)


def _uniform(rewards: Float[Tensor, "prompts responses"]) -> Bool[Tensor, "prompts 1"]:
    """Whether all rewards of a group are equal, up to `ROUNDING`; False where one is NaN."""
    low, high = rewards.aminmax(dim=1, keepdim=True)
    return (high == low) | (high - low < ROUNDING * torch.maximum(high.abs(), low.abs()))
