"""The records that flow through a global step, from prompt to gradient. All are frozen.

Shapes are written by jaxtyping and checked in the tests. A sequence of n tokens is *fed* n−1 positions: position i
holds token i and predicts token i+1. Every per-position array has n−1 rows, so no row is ever invented.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor

Routes = UInt8[Tensor, "*positions layers slots"] | UInt16[Tensor, "*positions layers slots"]
"""Experts chosen at each fed position, in the smallest unsigned type that leaves its largest value free: that value
is the sentinel "no route: route natively"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a response is sampled."""

    temperature: float
    """Softmax temperature; 0 is greedy decoding."""
    max_new_tokens: int
    """Longest response."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with at least this probability; 1 keeps all."""
    top_k: int = 0
    """Keep this many tokens; 0 keeps all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One response, as the inference engine returns it.

    A prompt of 5 tokens answered by 3 has `len(token_ids) == len(logprobs) == 3` and 7 rows of routes: the last
    sampled token was never fed, so it has none.
    """

    token_ids: tuple[int, ...]
    """Sampled tokens; the end-of-sequence token, where one was sampled, is the last."""
    logprobs: Float[Tensor, "tokens"]
    """log μ_old(y_t) of each sampled token, under the very distribution that it was sampled from."""
    routes: Routes | None
    """e^μ: experts of every fed position, prompt included; None for a dense model."""
    finish_reason: Literal["stop", "length"]
    """`stop`: an end token was sampled; `length`: the limit was reached."""
    policy_version: int
    """Gradient steps behind the weights that sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """A scored response on its way to the trainer."""

    prompt_ids: tuple[int, ...]
    """Tokens of the prompt."""
    completion: Completion
    """What the engine sampled."""
    advantage: float
    """Â(x, y), relative to the group of the same prompt."""
    group_tokens: int
    """Σ_i |y_i| over the group of the same prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What an objective needs of each response token, flat over the responses of a micro-batch."""

    rollout_logprobs: Float[Tensor, "tokens"]
    """log μ_old(y_t), from the inference engine."""
    old_logprobs: Float[Tensor, "tokens"]
    """log π_old(y_t), from the training engine at θ_old."""
    advantages: Float[Tensor, "tokens"]
    """Â of the response that the token belongs to."""
    response_tokens: Float[Tensor, "tokens"]
    """|y| of that response."""
    group_tokens: Float[Tensor, "tokens"]
    """Σ_i |y_i| over that response's group."""
    response: Int[Tensor, "tokens"]
    """Which response of the micro-batch, counted from 0; its tokens are contiguous and in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """A packed micro-batch: several sequences to a row, each with positions that start at 0 again.

    Two sequences of 4 and 3 tokens in one row of 6 columns: `position_ids = [[0, 1, 2, 0, 1, 0]]`; the last column
    is padding, which nothing reads.
    """

    input_ids: Int[Tensor, "rows columns"]
    """Fed tokens."""
    position_ids: Int[Tensor, "rows columns"]
    """Position of each fed token in its own sequence."""
    predicting: Int[Tensor, "tokens"]
    """Flat index (row · columns + column) of the fed position that predicts each response token."""
    targets: Int[Tensor, "tokens"]
    """The response tokens."""
    fed_tokens: int
    """Fed positions that are not padding."""
    routes: Routes | None = None
    """e^μ at each fed position, the sentinel at padding; None for a dense model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward and backward of an update takes: the positions, and the facts about their response tokens."""

    batch: TokenBatch
    """The packed positions."""
    moves: bool
    """Whether its responses have an advantage; an update skips those without."""
    rollout_logprobs: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    advantages: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    response_tokens: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    group_tokens: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    response: Int[Tensor, "tokens"]
    """As in `Tokens`."""

    def tokens(self, old_logprobs: Float[Tensor, "tokens"]) -> Tokens:
        """What an objective needs, once the θ_old pass has been made."""
        return Tokens(
            rollout_logprobs=self.rollout_logprobs,
            old_logprobs=old_logprobs,
            advantages=self.advantages,
            response_tokens=self.response_tokens,
            group_tokens=self.group_tokens,
            response=self.response,
        )
