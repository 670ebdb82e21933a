"""MiniRL and the plain policy gradients: objectives whose weight is a ratio to what sampled."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from steadyrl.algo.objectives.base import Objective, Weighed, capped
from steadyrl.algo.ratio import Level, at_level, product, staleness
from steadyrl.algo.trust import decoupled_clip
from steadyrl.options.bounds import Bound, PositiveFloat
from steadyrl.types import Tokens


@dataclass(frozen=True, kw_only=True)
class Reinforce(Objective):
    """REINFORCE with a baseline (Williams, 1992): the policy gradient as if μ_old = π_old = π_θ.

    J = E[ Σ_t Â · log π_θ(y_t) ]
    """

    name: ClassVar[str] = "reinforce"

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight 1, no mask."""
        return Weighed(torch.ones_like(logprobs))


@dataclass(frozen=True, kw_only=True)
class MiniRL(Objective):
    """MiniRL, eq. 7 of arXiv 2512.01374, and its ablations.

    J = E[ Σ_t M_t · sg[min(π_θ(y_t)/μ_old(y_t), cap)] · Â · log π_θ(y_t) ]

    There is no length normalisation.
    """

    name: ClassVar[str] = "minirl"
    clip_low: PositiveFloat = 0.2
    """ε_low: with Â<0 a token is masked where π_θ/π_old < 1−ε_low."""
    clip_high: PositiveFloat = 0.27
    """ε_high: with Â>0 a token is masked where π_θ/π_old > 1+ε_high."""
    clip: bool = True
    """Off: no token is masked (the paper's arms without clipping)."""
    importance_sampling: bool = True
    """Off: the weight π_θ/μ_old becomes π_θ/π_old, without the train-inference correction."""
    weight_cap: Bound = 5.0
    """The importance weight is truncated from above here (TIS); `inf` leaves it."""
    length_norm: bool = False
    """On: 1/|y| before the sum over tokens (the paper's ablation)."""
    _level: ClassVar[Level] = "token"

    def __post_init__(self) -> None:
        """The ablation of the length changes what is divided by."""
        object.__setattr__(self, "mean", "own_tokens" if self.length_norm else "responses")

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight and mask of eq. 7."""
        moved = staleness(logprobs, tokens.old_logprobs)
        log_weight = product(logprobs, tokens.rollout_logprobs) if self.importance_sampling else moved
        clipped = None
        if self.clip:
            clipped = decoupled_clip(moved, tokens.advantages, low=self.clip_low, high=self.clip_high)
        return capped(at_level(log_weight, tokens.response, level=self._level), self.weight_cap, clipped)


@dataclass(frozen=True, kw_only=True)
class MinPRO(MiniRL):
    """MinPRO, arXiv 2601.22718, in the place of the token's weight in eq. 7: sg[min(w_t · min_{s<t} w_s, cap)]."""

    name: ClassVar[str] = "minpro"
    _level: ClassVar[Level] = "lowest_prefix"


@dataclass(frozen=True, kw_only=True)
class PrefixIS(Objective):
    """The weight that puts the prefix of every token where π_θ would have put it, at any distance of π_θ and μ_old.

    J = E[ Σ_t sg[Π_{s≤t} w_s] · Â · log π_θ(y_t) ]

    Without a cap its mean is the gradient of J_seq, eq. 1 of arXiv 2512.01374, if the Â of a token is the value that
    π_θ expects after it. With one Â for the whole response, the tokens behind t are still those of μ_old: then
    `Composed(level="sequence", weight_cap=None, trust="none")`, eq. 2, is the one without bias.
    """

    name: ClassVar[str] = "prefix_is"
    weight_cap: Bound = None
    """The prefix product is truncated from above here."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The prefix product, no mask."""
        log_weight = at_level(product(logprobs, tokens.rollout_logprobs), tokens.response, level="prefix")
        return capped(log_weight, self.weight_cap)
