"""Token-level objectives, to be maximised. Each is a short composition of ratio, trust region and aggregation.

An objective returns one term per response token, already divided by its denominator. The denominators are counted
over the whole mini-batch, so that the sum of the terms over all its micro-batches, however it is split, is the
objective; `responses` and `groups` count the mini-batch, not the micro-batch.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo.ratio import importance_weight, staleness
from steadyrl.algo.trust import Clipped, decoupled_clip, unclipped
from steadyrl.types import Tokens


class Terms(NamedTuple):
    """An objective, token by token."""

    surrogate: Float[Tensor, "tokens"]
    """Summands; gradient flows to log π_θ."""
    clipped: Clipped
    """Tokens without gradient, by side."""
    truncated: Bool[Tensor, "tokens"]
    """Tokens whose importance weight was cut from above."""


class Objective(Protocol):
    """Anything that turns the log-probabilities of a micro-batch into terms."""

    normalised: ClassVar[bool]
    """Whether its advantages are divided by the standard deviation of their group."""

    def __call__(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens, *, responses: int, groups: int) -> Terms:
        """Terms of the micro-batch, given log π_θ(y_t)."""
        ...


@dataclass(frozen=True, kw_only=True)
class MiniRL:
    """MiniRL, eq. 7 of arXiv 2512.01374, and its ablations.

    J = E[ Σ_t M_t · sg[min(π_θ(y_t)/μ_old(y_t), cap)] · Â · log π_θ(y_t) ]

    E is the mean over the responses of the mini-batch; there is no length normalisation.
    """

    normalised: ClassVar[bool] = False
    clip_low: float = 0.2
    """ε_low."""
    clip_high: float = 0.27
    """ε_high."""
    clip: bool = True
    """Off: M_t = 1."""
    importance_sampling: bool = True
    """Off: π_old takes the place of μ_old in the weight, which drops the train–inference correction."""
    weight_cap: float | None = 5.0
    """Truncation of the importance weight."""
    length_norm: bool = False
    """1/|y| before the sum over tokens."""

    def __call__(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens, *, responses: int, groups: int) -> Terms:
        """Terms of eq. 7; `groups` is not used."""
        log_ratio = staleness(logprobs, tokens.old_logprobs)
        clipped = (
            decoupled_clip(log_ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)
            if self.clip
            else unclipped(tokens.advantages)
        )
        behaviour = tokens.rollout_logprobs if self.importance_sampling else tokens.old_logprobs
        raw = importance_weight(logprobs - behaviour, cap=None)
        weight = importance_weight(logprobs - behaviour, cap=self.weight_cap)
        denominator = responses * tokens.response_tokens if self.length_norm else responses
        kept = weight.where(clipped.kept, 0.0)  # where, not a product: 0 · inf would be NaN
        return Terms(kept * tokens.advantages * logprobs / denominator, clipped, truncated=raw > weight)


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """GRPO, Appendix A of arXiv 2512.01374 (after arXiv 2402.03300), without a KL penalty.

    J = E[ (1/G) Σ_i (1/|y_i|) Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) ],  r_t = π_θ(y_t)/π_old(y_t)
    """

    normalised: ClassVar[bool] = True
    clip_low: float = 0.2
    """ε_low."""
    clip_high: float = 0.27
    """ε_high."""

    def __call__(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens, *, responses: int, groups: int) -> Terms:
        """Terms of GRPO; groups are of equal size, so the mean over them is the mean over responses."""
        log_ratio = staleness(logprobs, tokens.old_logprobs)
        ratio = log_ratio.exp()
        bounded = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        pessimistic = torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages)
        clipped = decoupled_clip(log_ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)
        nothing = torch.zeros_like(clipped.low)
        return Terms(pessimistic / (responses * tokens.response_tokens), clipped, truncated=nothing)


@dataclass(frozen=True, kw_only=True)
class CISPO:
    """CISPO, Appendix A of arXiv 2512.01374 (after arXiv 2506.13585).

    J = E[ (1/Σ_i|y_i|) Σ_i Σ_t sg[clip(r_t, 1−ε_low, 1+ε_high)] Â log π_θ(y_t) ],  r_t = π_θ(y_t)/π_old(y_t)

    The weight is clipped, not the token: every token keeps a gradient.
    """

    normalised: ClassVar[bool] = True
    clip_low: float = 0.2
    """ε_low."""
    clip_high: float = 0.27
    """ε_high."""

    def __call__(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens, *, responses: int, groups: int) -> Terms:
        """Terms of CISPO: a mean over groups of the mean over each group's tokens; `responses` is not used."""
        ratio = importance_weight(staleness(logprobs, tokens.old_logprobs), cap=None)
        weight = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        terms = weight * tokens.advantages * logprobs / (groups * tokens.group_tokens)
        return Terms(terms, unclipped(tokens.advantages), truncated=ratio > weight)
