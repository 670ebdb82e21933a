"""An objective from the parts that the others are made of."""

from dataclasses import dataclass
from functools import reduce
from math import inf, log
from typing import Annotated, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steadyrl.algo.objectives.base import Mean, Objective, Weighed, capped
from steadyrl.algo.ratio import Level, at_level, masked_weight, mismatch, product, staleness, times
from steadyrl.algo.trust import (
    Clipped,
    binary_kl,
    binary_tv,
    decoupled_clip,
    divergence_mask,
    either,
    off_policy_sequence_mask,
    second_moment_mask,
)
from steadyrl.options.bounds import Bound, NotAbove, OnlyWith, PositiveFloat, Weight
from steadyrl.types import Tokens

Trust = Literal[
    "none",
    "clip",
    "rollout_clip",
    "tv",
    "kl",
    "sequence_mask",
    "old_sequence_mask",
    "clip+sequence_mask",
    "clip+old_sequence_mask",
    "rollout_clip+sequence_mask",
    "second_moment",
]
"""Where M_t = 0; `a+b` masks what one of the two masks."""


@dataclass(frozen=True, kw_only=True)
class Composed(Objective):
    """An objective of one's own, from the parts; as it stands, MiniRL.

    J = Σ M_t · sg[bound(ρ_t) · rest_t] · Â · log π_θ(y_t) / mean

    ρ_t is `ratio` at `level`. Where `ratio` is the mismatch alone, rest_t = r_t supplies the other factor of eq. 5,
    as TIS, MIS and IcePop do; else rest_t = 1.
    """

    name: ClassVar[str] = "composed"
    ratio: Literal["product", "mismatch", "staleness", "none"] = "product"
    """π_θ/μ_old, π_old/μ_old (times π_θ/π_old per token), π_θ/π_old, or 1."""
    level: Level = "token"
    """Over which tokens of the response the ratio is taken."""
    outside: Literal["truncate", "mask"] = "truncate"
    """A weight above the cap becomes the cap; or one outside [floor, cap] becomes 0."""
    weight_floor: Annotated[Weight, OnlyWith("outside", "mask"), NotAbove("weight_cap", strict=True)] = 0.0
    """Lower end of the band; for `mask` only."""
    weight_cap: Bound = 5.0
    """Upper end; `inf` is none."""
    trust: Trust = "clip"
    """Nothing; the clip of π_θ/π_old; that of π_θ/μ_old; DPPO's masks; OPSM of DeepSeek-V3.2, measured from μ_old or
    from π_old, alone or beside a clip; M2PO."""
    clip_low: PositiveFloat = 0.2
    """ε_low of the clips."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clips."""
    threshold: PositiveFloat = 0.15
    """Of `tv` (source: 0.15), `kl` (0.05), the sequence masks and `second_moment` (0.04)."""
    mean: Mean = "responses"
    """What the sum over tokens is divided by: responses, responses · |y|, groups · Σ|y| of the group, or Σ|y|."""
    normalised: bool = False
    """Divide advantages by the standard deviation of their group."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The parts, put together."""
        moved = staleness(logprobs, tokens.old_logprobs)
        log_ratio = {
            "product": product(logprobs, tokens.rollout_logprobs),
            "mismatch": mismatch(tokens.old_logprobs, tokens.rollout_logprobs),
            "staleness": moved,
            "none": torch.zeros_like(moved),
        }[self.ratio]
        log_weight, clipped = at_level(log_ratio, tokens.response, level=self.level), self._trust(logprobs, tokens)
        if self.outside == "truncate":
            weighed = capped(log_weight, self.weight_cap, clipped)
            bounded = log_weight if self.weight_cap is None else log_weight.clamp(max=log(self.weight_cap))
        else:
            high = inf if self.weight_cap is None else self.weight_cap
            weight = masked_weight(log_weight, low=self.weight_floor, high=high)
            weighed = Weighed(weight, clipped, weight != log_weight.exp())
            bounded = log_weight.masked_fill((weight != log_weight.exp()) & ~log_weight.isnan(), -inf)
        # in logs: neither 0 · inf, nor the overflow of a factor that the other makes up for
        return weighed._replace(weight=times(bounded, moved).exp()) if self.ratio == "mismatch" else weighed

    def _trust(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Clipped | None:
        if self.trust == "none":
            return None
        one, *more = (self._mask(name, logprobs, tokens) for name in self.trust.split("+"))
        return reduce(either, more, one)

    def _mask(self, name: str, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Clipped:
        advantages, rollout, response = tokens.advantages, tokens.rollout_logprobs, tokens.response
        from_old, from_rollout = staleness(logprobs, tokens.old_logprobs), product(logprobs, rollout)
        match name:
            case "clip" | "rollout_clip":
                moved = from_old if name == "clip" else from_rollout
                return decoupled_clip(moved, advantages, low=self.clip_low, high=self.clip_high)
            case "tv" | "kl":
                divergence = (binary_tv if name == "tv" else binary_kl)(logprobs, rollout)
                return divergence_mask(divergence, from_rollout, advantages, threshold=self.threshold)
            case "sequence_mask" | "old_sequence_mask":
                moved = from_rollout if name == "sequence_mask" else from_old
                return off_policy_sequence_mask(moved, advantages, response, threshold=self.threshold)
            case "second_moment":
                return second_moment_mask(from_rollout, advantages, response, threshold=self.threshold)
        raise ValueError(f"trust = {self.trust!r} is not one of {', '.join(get_args(Trust))}")
