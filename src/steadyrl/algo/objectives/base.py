"""Token-level objectives, to be maximised. Each says one thing: the weight of every token's ∇log π_θ.

An objective is a frozen dataclass whose method `weigh` returns, for each response token, the weight w_t in

    ∇J = Σ_t M_t · w_t · Â · ∇log π_θ(y_t) / denominator

and the mask M_t. `Objective` does the rest, once for all: it stops the gradient through the weight, masks, and divides
by a denominator that is counted over the whole mini-batch. So the sum of the terms over all micro-batches, however the
mini-batch is split, is the objective; `responses`, `groups` and `batch_tokens` count the mini-batch, not the
micro-batch. A token that is masked, has no advantage or has the weight 0 adds exactly 0 to value and gradient, whatever
its other factors are; a NaN of π_θ always shows.

Notation: r_t = π_θ(y_t)/π_old(y_t), w_t = π_θ(y_t)/μ_old(y_t); E is the mean over the responses of the mini-batch.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo.ratio import importance_weight
from steadyrl.algo.trust import Clipped
from steadyrl.types import Tokens

Mean = Literal["responses", "own_tokens", "group_tokens", "batch_tokens"]
"""What the sum over tokens is divided by.

`responses`: the responses; `own_tokens`: responses · |y|; `group_tokens`: groups · Σ_i |y_i| of the token's group;
`batch_tokens`: Σ |y| of the mini-batch.
"""


class Terms(NamedTuple):
    """An objective, token by token."""

    surrogate: Float[Tensor, "tokens"]
    """Summands; gradient flows to log π_θ."""
    clipped: Clipped
    """Tokens without gradient, by side."""
    truncated: Bool[Tensor, "tokens"]
    """Tokens whose importance weight was cut from above, or out."""


class Weighed(NamedTuple):
    """What an objective decides about each token."""

    weight: Float[Tensor, "tokens"]
    """w_t, before the mask."""
    clipped: Clipped | None = None
    """M_t = 0; None: nowhere."""
    truncated: Bool[Tensor, "tokens"] | None = None
    """The weight was cut from above, or out; None: nowhere."""
    value: Float[Tensor, "tokens"] | None = None
    """Value of the summand before the division; None: w_t Â log π_θ(y_t), or 0 where it is masked."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective made of a weight per token; the base of all below."""

    normalised: bool = field(default=False, init=False)
    """Whether its advantages are divided by the standard deviation of their group."""
    mean: Mean = field(default="responses", init=False)
    """What the sum over tokens is divided by."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The decision about each token, given log π_θ(y_t); runs without gradient."""
        raise NotImplementedError

    def __call__(
        self,
        logprobs: Float[Tensor, "tokens"],
        tokens: Tokens,
        *,
        responses: int,
        groups: int,
        batch_tokens: int | None = None,
    ) -> Terms:
        """Terms of the micro-batch: w_t Â log π_θ(y_t) over the denominator, with gradient to log π_θ only.

        Args:
            logprobs: log π_θ(y_t).
            tokens: what else there is to know of each token.
            responses: responses in the mini-batch.
            groups: prompts in the mini-batch.
            batch_tokens: response tokens in the mini-batch; read where `mean` is `batch_tokens` only.

        Raises:
            ValueError: `mean` is `batch_tokens`, and they were not given.
        """
        if self.mean == "batch_tokens" and batch_tokens is None:
            raise ValueError(
                'mean = "batch_tokens" needs batch_tokens, the response tokens of the mini-batch; found None'
            )
        with torch.no_grad():  # the stop-gradient of every objective
            weight, clipped, truncated, value = self.weigh(logprobs, tokens)
            counts = tokens.advantages != 0
            nowhere = torch.zeros_like(counts)
            clipped = Clipped(nowhere, nowhere) if clipped is None else clipped
            # where, not a product: 0 · inf would be NaN
            coefficient = (weight * tokens.advantages).where(clipped.kept & counts, 0.0)
            value = _times(coefficient, logprobs) if value is None else value.where(counts, 0.0)
        terms = cast(Tensor, _Sloped.apply(logprobs, value, coefficient))
        divisor = {
            "responses": responses,
            "own_tokens": responses * tokens.response_tokens,
            "group_tokens": groups * tokens.group_tokens,
            "batch_tokens": batch_tokens,
        }[self.mean]
        return Terms(terms / divisor, clipped, nowhere if truncated is None else truncated)


def _times(one: Float[Tensor, "tokens"], other: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """A product in which 0 · inf is 0; a NaN stays."""
    zero = ((one == 0) & ~other.isnan()) | ((other == 0) & ~one.isnan())
    return (one * other).masked_fill(zero, 0.0)


class _Sloped(torch.autograd.Function):
    """A value with a slope of its own, so that neither is computed from the other: inf − inf would be NaN."""

    @staticmethod
    def forward(ctx: Any, logprobs: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor, None, None]:
        """The slope, to the log-probabilities alone."""
        (slope,) = ctx.saved_tensors
        return slope * above[0], None, None


def capped(log_weight: Float[Tensor, "tokens"], cap: float | None, clipped: Clipped | None = None) -> Weighed:
    """The weight truncated at the cap, and where that cut it."""
    weight = importance_weight(log_weight, cap=cap)
    return Weighed(weight, clipped, log_weight.exp() > weight)


def refuse_broken(logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> None:
    """Look for numbers that no objective can use; it waits for the device, so call it where a batch comes in.

    Raises:
        ValueError: a log-probability or an advantage is NaN or infinite; the message names the response and the token.
    """
    columns = {"logprobs": logprobs, "old_logprobs": tokens.old_logprobs, "rollout_logprobs": tokens.rollout_logprobs}
    for name, column in {**columns, "advantages": tokens.advantages}.items():
        broken = (~column.isfinite()).nonzero()
        if len(broken):
            token = int(broken[0])
            response = tokens.response[token]
            position = int((tokens.response[:token] == response).sum())
            raise ValueError(
                f"{name} of token {position} of response {int(response)} is {column[token].item()}; "
                "drop the response, or find what computed it"
            )
