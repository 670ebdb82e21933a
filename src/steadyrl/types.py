"""The records that flow through a global step, from prompt to gradient. All are frozen.

Shapes are written by jaxtyping and checked in the tests. A sequence of n tokens is *fed* n−1 positions: position i
holds token i and predicts token i+1. Every per-position array has n−1 rows, so no row is ever invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from torch import Tensor

from steadyrl.errors import UserError

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
class Given:
    """Tokens that the policy reads and did not choose: a prompt, the output of a tool, a message of an environment."""

    token_ids: tuple[int, ...]
    """Its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """Tokens that one policy version sampled."""

    token_ids: tuple[int, ...]
    """Sampled tokens; the end-of-sequence token, where one was sampled, is the last."""
    logprobs: Float[Tensor, "tokens"]
    """log μ_old(y_t) of each sampled token, under the very distribution that it was sampled from."""
    finish_reason: Literal["stop", "length"]
    """`stop`: an end token was sampled; `length`: the limit was reached."""
    policy_version: int
    """Gradient steps behind the weights that sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion(Sampled):
    """One response, as the inference engine returns it: a sampled span, with the routes of the prompt before it.

    A prompt of 5 tokens answered by 3 has `len(token_ids) == len(logprobs) == 3` and 7 rows of routes: the last
    sampled token was never fed, so it has none.
    """

    routes: Routes | None
    """e^μ: experts of every fed position, prompt included; None for a dense model."""


Span = Given | Sampled
"""A part of a trajectory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """Token ids cut into spans, on their way to the trainer. Only sampled tokens have a weight and a loss.

    A prompt p0 p1, an answer a0 a1, a tool's output t0 and a second answer b0 make the spans (Given, Sampled, Given,
    Sampled). Of their 6 tokens 5 are fed, so there are 5 rows of routes. The fed p1, a0 and t0 predict the sampled a0,
    a1 and b0: these are the tokens of the objective. |y| = 3.

    Raises:
        UserError: the first span is not given, the last one is not sampled, a span has no tokens, or log-probs or
            routes do not fit the tokens.
    """

    spans: tuple[Span, ...]
    """Its parts, in order. Trajectories of one group that begin with the same given span share its computation."""
    routes: Routes | None
    """e^μ: experts of every fed position; None for a dense model."""
    advantage: float
    """Â(x, y), relative to the group of the same prompt."""
    group_tokens: int
    """Σ_i |y_i| over the counted trajectories of the group."""
    excess: float | None = None
    """R less the mean R of the others in the group, which Δ is measured with; None: not known, Â replaces it."""
    counted: bool = True
    """Whether it counts in the denominators: it has a reward, and its group is not filtered out."""

    def __post_init__(self) -> None:
        """Reject what would train the wrong positions."""
        if not self.spans or not isinstance(self.spans[0], Given) or not isinstance(self.spans[-1], Sampled):
            kinds = ", ".join(type(span).__name__ for span in self.spans)
            raise UserError(f"trajectory.spans = ({kinds}): the first must be Given and the last Sampled")
        for place, span in enumerate(self.spans):
            if not span.token_ids:
                raise UserError(f"trajectory.spans[{place}] has no tokens; leave it out")
            if isinstance(span, Sampled) and len(span.logprobs) != len(span.token_ids):
                found = f"{len(span.logprobs)} log-probs for {len(span.token_ids)} sampled tokens"
                raise UserError(f"trajectory.spans[{place}] has {found}; each needs one")
        if self.routes is not None and len(self.routes) != self.fed:
            raise UserError(f"trajectory.routes has {len(self.routes)} rows for {self.fed} fed positions; each needs 1")

    @classmethod
    def single(
        cls,
        prompt_ids: Sequence[int],
        completion: Completion,
        *,
        advantage: float,
        group_tokens: int,
        excess: float | None = None,
        counted: bool = True,
    ) -> "Trajectory":
        """Make the trajectory of a single turn: a prompt, and what an engine returned for it."""
        return cls(
            spans=(Given(token_ids=tuple(prompt_ids)), completion),
            routes=completion.routes,
            advantage=advantage,
            group_tokens=group_tokens,
            excess=excess,
            counted=counted,
        )

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens."""
        return tuple(chain.from_iterable(span.token_ids for span in self.spans))

    @property
    def fed(self) -> int:
        """Number of fed positions: all tokens but the last."""
        return sum(len(span.token_ids) for span in self.spans) - 1

    @property
    def sampled(self) -> tuple[Sampled, ...]:
        """The sampled spans."""
        return tuple(span for span in self.spans if isinstance(span, Sampled))

    @property
    def sampled_tokens(self) -> int:
        """|y|: the number of sampled tokens."""
        return sum(len(span.token_ids) for span in self.sampled)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """What an objective needs of each sampled token, flat over the trajectories of a micro-batch."""

    rollout_logprobs: Float[Tensor, "tokens"]
    """log μ_old(y_t), from the inference engine."""
    old_logprobs: Float[Tensor, "tokens"]
    """log π_old(y_t), from the training engine at θ_old."""
    advantages: Float[Tensor, "tokens"]
    """Â of the trajectory that the token belongs to."""
    response_tokens: Float[Tensor, "tokens"]
    """|y| of that trajectory."""
    group_tokens: Float[Tensor, "tokens"]
    """Σ_i |y_i| over that trajectory's group."""
    response: Int[Tensor, "tokens"]
    """Which trajectory of the micro-batch, counted from 0; its tokens are contiguous and in order."""

    @classmethod
    def from_padded(
        cls,
        *,
        rollout_logprobs: Float[Tensor, "responses length"],
        old_logprobs: Float[Tensor, "responses length"],
        advantages: Float[Tensor, "responses"] | Float[Tensor, "responses length"],
        mask: Bool[Tensor, "responses length"] | Int[Tensor, "responses length"],
        group_tokens: Float[Tensor, "responses"] | Int[Tensor, "responses"],
    ) -> "Tokens":
        """Flatten the padded tensors of TRL or verl; log π_θ goes to the objective as `logprobs[mask.bool()]`.

        Args:
            rollout_logprobs: log μ_old, such as TRL's `sampling_per_token_logps` or verl's `rollout_log_probs`.
            old_logprobs: log π_old, such as `old_per_token_logps` or `old_log_probs`.
            advantages: Â of each response, or of each token.
            mask: true at sampled tokens, such as `completion_mask` or `response_mask`; false at padding and at the
                output of tools.
            group_tokens: Σ_i |y_i| over the group of each response, counted over the whole mini-batch.

        Raises:
            ValueError: a tensor has another shape.
        """
        if advantages.ndim == 1:
            advantages = advantages[:, None].expand(len(advantages), mask.shape[1])
        padded = {"rollout_logprobs": rollout_logprobs, "old_logprobs": old_logprobs, "advantages": advantages}
        for name, tensor in padded.items():
            if tensor.shape != mask.shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; that of the mask is {tuple(mask.shape)}")
        if group_tokens.shape != mask.shape[:1]:
            raise ValueError(f"group_tokens has the shape {tuple(group_tokens.shape)}; the mask has {len(mask)} rows")
        counts = mask.bool()
        lengths = counts.sum(dim=1)
        return cls(
            **{name: tensor[counts] for name, tensor in padded.items()},
            response_tokens=lengths.to(rollout_logprobs.dtype).repeat_interleave(lengths),
            group_tokens=group_tokens.to(rollout_logprobs.dtype).repeat_interleave(lengths),
            response=torch.arange(len(mask), device=mask.device).repeat_interleave(lengths),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBatch:
    """A packed micro-batch. It contains a prompt once, even if several responses follow.

    The model computes the *positions*, in one row. Only attention sees whole sequences: it copies
    each position to the *cells* of all sequences that contain it. Cells form blocks of sequences of nearly equal
    length.

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
    """The fed position that predicts each sampled token."""
    targets: Int[Tensor, "tokens"]
    """The sampled tokens."""
    fed_tokens: int
    """Cells that are not padding: what the sequences would feed one by one."""
    routes: Routes | None = None
    """e^μ at each fed position; None for a dense model."""

    def to(self, device: torch.device) -> "TokenBatch":
        """Return the same on `device`."""
        return replace(self, **_tensors(self, device))


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one forward and backward of an update takes: the positions, and the facts about their sampled tokens."""

    batch: TokenBatch
    """The packed positions."""
    moves: bool
    """Whether its trajectories have an advantage; an update skips those without."""
    rollout_logprobs: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    advantages: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    response_tokens: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    group_tokens: Float[Tensor, "tokens"]
    """As in `Tokens`."""
    excess: Float[Tensor, "tokens"]
    """As in `Trajectory`, of the one that the token belongs to; Â where it is not known."""
    response: Int[Tensor, "tokens"]
    """As in `Tokens`."""
    policy_version: Int[Tensor, "tokens"]
    """Gradient steps behind the weights that sampled the token."""

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same on `device`."""
        return replace(self, batch=self.batch.to(device), **_tensors(self, device))

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


def _tensors(record: TokenBatch | MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a record by field, on `device`."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
