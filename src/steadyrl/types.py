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

Blocks = tuple[tuple[int, int], ...]
"""Blocks of sequences that are padded to one length: (sequences, length) of each."""


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
    """A response with its advantage on its way to the trainer."""

    prompt_ids: tuple[int, ...]
    """Tokens of the prompt."""
    completion: Completion
    """What the engine sampled."""
    advantage: float
    """Â(x, y), relative to the group of the same prompt."""
    group_tokens: int
    """Σ_i |y_i| over the group of the same prompt."""
    excess: float | None = None
    """R less the mean R of the others in the group, which Δ is measured with; None: not known, Â stands for it."""


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
    """A packed micro-batch. A prompt stands in it once, however many responses follow it.

    The model computes the *positions*, end to end in one row. Attention alone sees whole sequences: it takes each
    position to the *cells* of the sequences that it belongs to, which lie in blocks of nearly equal length.

    A prompt of 2 tokens, answered by 3 and by 2, takes 2 + 2 + 1 positions with the ids p0 p1 a0 a1 b0, and two blocks
    of one sequence, of 4 and of 3: `cells = [0, 1, 2, 3, 0, 1, 4]`, `home = [0, 1, 2, 3, 6]`,
    `predicting = [1, 2, 3, 1, 4]`.
    """

    input_ids: Int[Tensor, "positions"]
    """Fed tokens."""
    position_ids: Int[Tensor, "positions"]
    """Position of each fed token in its own sequence."""
    blocks: Blocks
    """Blocks of sequences."""
    cells: Int[Tensor, "cells"]
    """The position in each cell; padding repeats the last of its sequence."""
    home: Int[Tensor, "positions"]
    """The first cell of each position."""
    predicting: Int[Tensor, "tokens"]
    """The fed position that predicts each response token."""
    targets: Int[Tensor, "tokens"]
    """The response tokens."""
    fed_tokens: int
    """Cells that are not padding: what the sequences would feed one by one."""
    routes: Routes | None = None
    """e^μ at each fed position; None for a dense model."""


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
    excess: Float[Tensor, "tokens"]
    """As in `Response`, of the response that the token belongs to."""
    response: Int[Tensor, "tokens"]
    """As in `Tokens`."""
    policy_version: Int[Tensor, "tokens"]
    """Gradient steps behind the weights that sampled the token."""

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
