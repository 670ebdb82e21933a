"""DPPO: objectives whose trust region is a divergence from what sampled."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from steadyrl.algo.objectives.base import Objective, Weighed
from steadyrl.algo.ratio import product
from steadyrl.algo.trust import binary_kl, binary_tv, divergence_mask
from steadyrl.options.bounds import PositiveFloat
from steadyrl.types import Tokens


@dataclass(frozen=True, kw_only=True)
class DPPOTV(Objective):
    """DPPO with binary total variation, arXiv 2602.04879: the trust region is a divergence from μ_old.

    J = E[ Σ_t M_t · sg[π_θ(y_t)/μ_old(y_t)] · Â · log π_θ(y_t) ]

    M_t = 0 iff |μ_old(y_t) − π_θ(y_t)| > δ and the update moves outward (Â>0, w_t>1 or Â<0, w_t<1).
    """

    name: ClassVar[str] = "dppo_tv"
    threshold: PositiveFloat = 0.15
    """δ: a token that lies farther out, and would go on, is masked."""
    _divergence: ClassVar = staticmethod(binary_tv)

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight w_t, masked where the divergence is too large."""
        log_weight = product(logprobs, tokens.rollout_logprobs)
        divergence = self._divergence(logprobs, tokens.rollout_logprobs)
        clipped = divergence_mask(divergence, log_weight, tokens.advantages, threshold=self.threshold)
        return Weighed(log_weight.exp(), clipped)


@dataclass(frozen=True, kw_only=True)
class DPPOKL(DPPOTV):
    """DPPO with binary KL, arXiv 2602.04879: as `DPPOTV`, with D_KL of "this token or another" for the divergence."""

    name: ClassVar[str] = "dppo_kl"
    threshold: PositiveFloat = 0.05
    """δ, in nats."""
    _divergence: ClassVar = staticmethod(binary_kl)
