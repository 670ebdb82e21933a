"""GRPO and what changes one thing of it: objectives with the clip of PPO on π_θ/π_old."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from steadyrl.algo.objectives.base import Mean, Objective, Weighed
from steadyrl.algo.ratio import Level, at_level, product, staleness
from steadyrl.algo.trust import decoupled_clip, either, off_policy_sequence_mask
from steadyrl.options.bounds import PositiveFloat
from steadyrl.types import Tokens


@dataclass(frozen=True, kw_only=True)
class GRPO(Objective):
    """GRPO, Appendix A of arXiv 2512.01374 (after arXiv 2402.03300), without a KL penalty.

    J = E[ (1/|y|) Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) ]

    Groups are of equal size, so the mean over them is the mean over responses.
    """

    name: ClassVar[str] = "grpo"
    normalised: bool = field(default=True, init=False)
    mean: Mean = field(default="own_tokens", init=False)
    clip_low: PositiveFloat = 0.2
    """ε_low of the clipped ratio."""
    clip_high: PositiveFloat = 0.27
    """ε_high of the clipped ratio."""
    _level: ClassVar[Level] = "token"

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight r_t, masked where the clip is the smaller; the value is the minimum itself."""
        log_ratio = at_level(staleness(logprobs, tokens.old_logprobs), tokens.response, level=self._level)
        clipped = decoupled_clip(log_ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)
        ratio = log_ratio.exp()
        bounded = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return Weighed(ratio, clipped, value=torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages))


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """Dr. GRPO, arXiv 2503.20783: GRPO without 1/|y| and without the standard deviation.

    J = E[ Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) ]
    """

    name: ClassVar[str] = "dr_grpo"
    normalised: bool = field(default=False, init=False)
    mean: Mean = field(default="responses", init=False)
    clip_high: PositiveFloat = 0.2


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """DAPO, arXiv 2503.14476: GRPO with a wider upper clip and the mean over the tokens of a group.

    J = mean over groups of (1/Σ_i|y_i|) Σ_i Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â)

    With `token_mean="batch"` one mean over the tokens of all groups, as verl and TRL take it. Its dynamic sampling is
    `advantage.informative`, its overlong filtering `advantage.without_truncated`.
    """

    name: ClassVar[str] = "dapo"
    mean: Mean = field(default="group_tokens", init=False)
    clip_high: PositiveFloat = 0.28
    token_mean: Literal["group", "batch"] = "group"
    """The mean over tokens is one of each group, then over groups; or one of the whole mini-batch, as in verl, TRL."""

    def __post_init__(self) -> None:
        """The tokens of the mean are what is divided by."""
        if self.token_mean == "batch":
            object.__setattr__(self, "mean", "batch_tokens")


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """GSPO, arXiv 2507.18071: the clip of PPO on one ratio per response.

    J = E[ min(s Â, clip(s, 1−ε_low, 1+ε_high) Â) ],  s = (Π_t r_t)^{1/|y|}

    ∇J = E[ M · s · Â · (1/|y|) Σ_t ∇log π_θ(y_t) ]: each token has the weight s, and the response its mean over tokens.
    """

    name: ClassVar[str] = "gspo"
    clip_low: PositiveFloat = 3e-4
    clip_high: PositiveFloat = 4e-4
    _level: ClassVar[Level] = "geometric"


@dataclass(frozen=True, kw_only=True)
class OPSM(GRPO):
    """Off-policy sequence masking of DeepSeek-V3.2, eq. 8 and 9 of arXiv 2512.02556, without its KL penalty.

    J = E[ (1/|y|) Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) · M ]

    M = 0 iff Â < 0 and (1/|y|) Σ_t log μ_old(y_t)/π_θ(y_t) > δ. The mask stands beside the clip. It measures from the
    probabilities that the inference engine returned, so it sees both factors of eq. 5 of arXiv 2512.01374. Â is not
    divided by the standard deviation. The source gives neither δ nor ε; the values here are ours.
    """

    name: ClassVar[str] = "opsm"
    normalised: bool = field(default=False, init=False)
    threshold: PositiveFloat = 0.1
    """δ, nats per token: with Â<0, a response whose mean of log μ_old/π_θ is above it is masked."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """As GRPO, less the responses that are masked whole."""
        weight, clipped, _, value = super().weigh(logprobs, tokens)
        far = off_policy_sequence_mask(
            product(logprobs, tokens.rollout_logprobs), tokens.advantages, tokens.response, threshold=self.threshold
        )
        assert clipped is not None
        assert value is not None
        return Weighed(weight, either(clipped, far), value=value.where(far.kept, 0.0))


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    """CISPO, Appendix A of arXiv 2512.01374 (after arXiv 2506.13585).

    J = mean over groups of (1/Σ_i|y_i|) Σ_i Σ_t sg[clip(r_t, 1−ε_low, 1+ε_high)] Â log π_θ(y_t)

    The weight is clipped, not the token: every token keeps a gradient.
    """

    name: ClassVar[str] = "cispo"
    mean: Mean = field(default="group_tokens", init=False)

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight r_t between its bounds, no mask."""
        ratio = staleness(logprobs, tokens.old_logprobs).exp()
        weight = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return Weighed(weight, truncated=ratio > weight)
