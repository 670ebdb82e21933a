"""VESPO and SAPO: objectives with a smooth weight instead of a mask."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steadyrl.algo.objectives.base import Mean, Objective, Weighed
from steadyrl.algo.ratio import BEYOND, at_level, product, staleness
from steadyrl.options.bounds import PositiveFloat
from steadyrl.types import Tokens


@dataclass(frozen=True, kw_only=True)
class VESPO(Objective):
    """VESPO, arXiv 2602.10693: a soft weight of the whole response.

    J = E[ Σ_t sg[φ(W)] · Â · log π_θ(y_t) ],  φ(W) = W^{c1} e^{c2 (1−W)},  W = Π_t w_t, not normalised by the length
    """

    name: ClassVar[str] = "vespo"
    rise_positive: PositiveFloat = 2.0
    """c1 for Â > 0."""
    fall_positive: PositiveFloat = 3.0
    """c2 for Â > 0."""
    rise_negative: PositiveFloat = 3.0
    """c1 for Â < 0."""
    fall_negative: PositiveFloat = 2.0
    """c2 for Â < 0."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight φ(W), no mask."""
        log_weight = at_level(product(logprobs, tokens.rollout_logprobs), tokens.response, level="sequence")
        log_weight = log_weight.clamp(max=BEYOND)  # else inf − inf; φ is 0 there
        rise = _by_sign(tokens.advantages, self.rise_positive, self.rise_negative)
        fall = _by_sign(tokens.advantages, self.fall_positive, self.fall_negative)
        return Weighed((rise * log_weight - fall * log_weight.expm1()).exp())


@dataclass(frozen=True, kw_only=True)
class SAPO(Objective):
    """SAPO, arXiv 2511.20347: a soft gate in the place of the clip.

    J = E[ (1/|y|) Σ_t (4/τ) σ(τ (r_t − 1)) Â ],  so the weight is 4 σ(1−σ) r_t
    """

    name: ClassVar[str] = "sapo"
    normalised: bool = field(default=True, init=False)
    mean: Mean = field(default="own_tokens", init=False)
    temperature_positive: PositiveFloat = 1.0
    """τ for Â > 0."""
    temperature_negative: PositiveFloat = 1.05
    """τ for Â < 0."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The slope of the gate, and the gate as the value; no mask."""
        log_ratio = staleness(logprobs, tokens.old_logprobs).clamp(max=BEYOND)  # else inf − inf; the slope is 0
        tau = _by_sign(tokens.advantages, self.temperature_positive, self.temperature_negative)
        beyond = tau * log_ratio.expm1()
        slope = (logsigmoid(beyond) + logsigmoid(-beyond) + log_ratio).exp()  # as logs: 0 where r_t overflows
        return Weighed(4.0 * slope, value=4.0 / tau * beyond.sigmoid() * tokens.advantages)


def _by_sign(advantages: Float[Tensor, "tokens"], positive: float, negative: float) -> Float[Tensor, "tokens"]:
    return torch.full_like(advantages, negative).masked_fill(advantages > 0, positive)
