"""Advantages relative to the group of responses to the same prompt, and the filters of GRPO-like recipes.

A reward may be missing, because its verifier failed. `known` marks the rewards that exist; None means all. A response
without a reward does not count in its group's baseline or deviation, and its advantage is 0. If only one response of a
group has a reward, its advantage is 0 too.

Rewards are float32 numbers. A verifier may add the same numbers in another order, and the sums differ in the last bits.
So a group whose spread is below 8 · 2⁻²³ · max |R| counts as a group of equal rewards everywhere.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.options.bounds import Weight

ROUNDING = 8 * 2.0**-23
"""Rewards of a group that differ by less than this share of the largest are equal."""


class Advantage(Protocol):
    """How the rewards of groups become advantages."""

    def __call__(
        self,
        rewards: Float[Tensor, "prompts responses"],
        *,
        known: Bool[Tensor, "prompts responses"],
        normalise: bool,
    ) -> Float[Tensor, "prompts responses"]:
        """Â of each response; that of a response without a reward is not looked at.

        Args:
            rewards: R, a row for each group; anything where it is not known.
            known: which responses have a reward.
            normalise: whether the objective divides by the standard deviation of the group.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GroupAdvantage:
    """The reward less the mean of its group, which the objective may divide by the group's standard deviation."""

    name: ClassVar[str] = "group"
    leave_one_out: bool = False
    """The baseline of a response is the mean over the others of its group (RLOO, arXiv 2402.14740), not over all."""
    epsilon: Weight = 0.0
    """Added to the standard deviation where the objective divides by it. Groups of equal rewards need none."""

    def __call__(
        self,
        rewards: Float[Tensor, "prompts responses"],
        *,
        known: Bool[Tensor, "prompts responses"],
        normalise: bool,
    ) -> Float[Tensor, "prompts responses"]:
        """Â of each response; 0 where there is no reward."""
        if self.leave_one_out:
            return leave_one_out(rewards, known=known)
        return group_advantage(rewards, normalise=normalise, epsilon=self.epsilon, known=known)


def group_advantage(
    rewards: Float[Tensor, "prompts responses"],
    *,
    normalise: bool,
    epsilon: float = 0.0,
    known: Bool[Tensor, "prompts responses"] | None = None,
) -> Float[Tensor, "prompts responses"]:
    """Â = R − mean(R) over the group, divided by the group's standard deviation plus `epsilon` if `normalise`.

    MiniRL (arXiv 2512.01374, §3) does not divide; GRPO and CISPO (its Appendix A) do. The standard deviation is the
    population's; a group of equal rewards, or of one response, gets zeros either way.
    """
    known = _all(rewards) if known is None else known
    count = known.sum(dim=1, keepdim=True)
    centred = rewards - rewards.where(known, 0.0).sum(dim=1, keepdim=True) / count
    if normalise:
        centred = centred / ((centred.square().where(known, 0.0).sum(dim=1, keepdim=True) / count).sqrt() + epsilon)
    # the mean of equal rewards is rounded, and 0/0 is NaN
    return centred.masked_fill(_uniform(rewards, known) | ~known, 0.0)


def leave_one_out(
    rewards: Float[Tensor, "prompts responses"], *, known: Bool[Tensor, "prompts responses"] | None = None
) -> Float[Tensor, "prompts responses"]:
    """Â_i = R_i − mean of R_j over the others of the group, j ≠ i (RLOO, arXiv 2402.14740): G/(G−1) of the centred.

    The baseline does not depend on the response's own reward, which makes the estimate unbiased. G counts the
    responses that have a reward.

    Raises:
        ValueError: the groups have one response, which has no others.
    """
    if rewards.shape[1] == 1:
        raise ValueError("leave_one_out needs groups of at least 2 responses, found 1; sample more per prompt")
    known = _all(rewards) if known is None else known
    size = known.sum(dim=1, keepdim=True)
    scale = size / (size - 1).clamp(min=1)
    return group_advantage(rewards, normalise=False, known=known) * scale


def informative(
    rewards: Float[Tensor, "prompts responses"], *, known: Bool[Tensor, "prompts responses"] | None = None
) -> Bool[Tensor, "prompts"]:
    """Groups whose rewards differ: what DAPO's dynamic sampling (arXiv 2503.14476) keeps."""
    return ~_uniform(rewards, _all(rewards) if known is None else known).squeeze(1)


def without_truncated(
    advantages: Float[Tensor, "prompts responses"], truncated: Bool[Tensor, "prompts responses"]
) -> Float[Tensor, "prompts responses"]:
    """Â = 0 for responses cut at the length limit (DAPO's overlong filtering); they still count in the baseline."""
    return advantages.masked_fill(truncated, 0.0)


def _uniform(
    rewards: Float[Tensor, "prompts responses"], known: Bool[Tensor, "prompts responses"]
) -> Bool[Tensor, "prompts 1"]:
    """Groups without two rewards that differ, up to `ROUNDING`."""
    highest = rewards.masked_fill(~known, -torch.inf).amax(dim=1, keepdim=True)
    lowest = rewards.masked_fill(~known, torch.inf).amin(dim=1, keepdim=True)
    largest = torch.maximum(highest.abs(), lowest.abs())
    # the first: all are 0, or none is known, and the extremes are −∞ and ∞
    return (highest <= lowest) | (highest - lowest < ROUNDING * largest)


def _all(rewards: Float[Tensor, "prompts responses"]) -> Bool[Tensor, "prompts responses"]:
    return torch.ones_like(rewards, dtype=torch.bool)
