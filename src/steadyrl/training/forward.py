"""The forwards of a global step: the θ_old pass, and those of the updates with their backward.

Each function runs one micro-batch, forward and backward together, under the experts it must use, and returns data. The
backward belongs there: recomputed activations run the blocks of experts once more, and must meet the same routes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo import Terms, ledger
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.routing import Recorder, is_moe, record, replay
from steadyrl.types import MicroBatch, Routes, Tokens

Replay = Literal["none", "R2", "R3"]
"""Whose experts the updates use: the trainer's own, those of the θ_old pass, or those of the rollout."""

Loss = Callable[[Float[Tensor, "tokens"], Tokens], Terms]
"""An objective with its denominators: log π_θ and the facts about the tokens → the terms of the surrogate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OldPass:
    """A micro-batch after the θ_old pass."""

    micro: MicroBatch
    """Positions and facts."""
    old_logprobs: Float[Tensor, "tokens"]
    """log π_old(y_t)."""
    entropy: Float[Tensor, "tokens"]
    """Entropy of π_old where each token was sampled."""
    differs: Bool[Tensor, "positions layers"] | None
    """Whether the trainer's routers chose, or under R3 would have chosen, other experts than the rollout's; None where
    one of the two is not known."""
    margins: Float[Tensor, "positions layers"] | None
    """How near to a tie those choices were."""
    replayed: Routes | None
    """Experts that every update must use: e^π_old under R2, e^μ_old under R3; None: route natively."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What an update leaves to be measured, per token."""

    logprobs: Float[Tensor, "tokens"]
    """log π_θ(y_t) as the update saw it."""
    old: OldPass
    """The micro-batch."""
    terms: Terms
    """Its terms, detached."""


@torch.no_grad()
def old_pass(policy: Policy, micro: MicroBatch, *, replay: Replay, temperature: float) -> OldPass:
    """Compute π_old of a micro-batch.

    It runs on the very micro-batches that the updates run on, so that at θ_old the ratio π_θ/π_old is exactly 1.

    Raises:
        ValueError: R3, and the engine returned no routes.
    """
    with _routing(policy, _rollout_routes(micro, replay)) as recorder:
        logprobs, entropy = response_logprobs(policy.model, micro.batch, temperature=temperature)
        return _old(micro, logprobs, entropy, recorder, replay)


def update_at_old(policy: Policy, micro: MicroBatch, loss: Loss, *, replay: Replay, temperature: float) -> Trace:
    """Add the gradient of a micro-batch at θ_old; the same forward is its θ_old pass.

    It routes natively under `none` and R2, and replays the rollout's experts under R3.

    Raises:
        ValueError: R3, and the engine returned no routes.
    """
    with _routing(policy, _rollout_routes(micro, replay)) as recorder:
        logprobs, entropy = response_logprobs(policy.model, micro.batch, temperature=temperature)
        return _backward(logprobs, _old(micro, logprobs.detach(), entropy, recorder, replay), loss)


def update_later(policy: Policy, old: OldPass, loss: Loss, *, temperature: float) -> Trace:
    """Add the gradient of a micro-batch at a later θ, with the experts that were fixed at θ_old."""
    with _replaying(policy, old.replayed):
        logprobs, _ = response_logprobs(policy.model, old.micro.batch, temperature=temperature)
        return _backward(logprobs, old, loss)


def gradient_of(
    policy: Policy, old: OldPass, loss: Loss, tensors: Sequence[Tensor], *, temperature: float
) -> tuple[Tensor, ...]:
    """Return the gradient of the surrogate to some of the weights, with the experts that were fixed at θ_old."""
    with _replaying(policy, old.replayed):
        logprobs, _ = response_logprobs(policy.model, old.micro.batch, temperature=temperature)
        value = loss(logprobs, old.micro.tokens(old.old_logprobs)).surrogate.sum()
        return torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)


def _rollout_routes(micro: MicroBatch, replay: Replay) -> Routes | None:
    """The routes that a forward at θ_old must use; None: its own."""
    if replay != "R3":
        return None
    if micro.batch.routes is None:
        raise ValueError('update.replay = "R3" needs the routes of the rollout, and the engine returned none')
    return micro.batch.routes


@contextmanager
def _routing(policy: Policy, routes: Routes | None) -> Iterator[Recorder | None]:
    """Replay `routes`; without any, watch the routers; a dense model has none."""
    if not is_moe(policy.model):
        yield None
        return
    watched = (
        record(policy.model, margins=True)
        if routes is None
        else replay(policy.model, routes, margins=True, checked=True)
    )
    with watched as recorder:
        yield recorder


@contextmanager
def _replaying(policy: Policy, routes: Routes | None) -> Iterator[None]:
    if routes is None:
        yield
        return
    with replay(policy.model, routes, checked=True):
        yield


def _old(micro: MicroBatch, logprobs: Tensor, entropy: Tensor, recorder: Recorder | None, mode: Replay) -> OldPass:
    rollout = micro.batch.routes
    own = None if recorder is None else recorder.routes()
    return OldPass(
        micro=micro,
        old_logprobs=logprobs,
        entropy=entropy,
        differs=None if own is None or rollout is None else ledger.routes_differ(own, rollout),
        margins=None if recorder is None else recorder.margins(),
        replayed={"none": None, "R2": own, "R3": rollout}[mode],
    )


def _backward(logprobs: Tensor, old: OldPass, loss: Loss) -> Trace:
    terms = loss(logprobs, old.micro.tokens(old.old_logprobs))
    (-terms.surrogate.sum()).backward()
    detached = terms._replace(surrogate=terms.surrogate.detach())
    return Trace(logprobs=logprobs.detach(), old=old, terms=detached)
