"""An objective of your own: in a recipe, `objective = "root_is.py:RootIS"`."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from steadyrl.algo import Objective, Tokens, Weighed, product
from steadyrl.options.bounds import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class RootIS(Objective):
    """The square root of the importance weight.

    J = E[ Σ_t sg[min(√w_t, cap)] · Â · log π_θ(y_t) ]
    """

    name: ClassVar[str] = "root_is"
    weight_cap: PositiveFloat = 2.0
    """The weight is truncated from above here."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight √w_t, no mask."""
        root = (0.5 * product(logprobs, tokens.rollout_logprobs)).exp()
        weight = root.clamp(max=self.weight_cap)
        return Weighed(weight, truncated=root > weight)
