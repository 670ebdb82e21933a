"""The second half of a global step: π_old, then N gradient updates under replay."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steadyrl.algo import Objective, Terms, ledger, mismatch, product, staleness, surrogate_error, value_gap
from steadyrl.algo.ratio import begins
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.moved import Moved, moved_since, sampled
from steadyrl.model.routing import Recorder, is_moe, record, replay
from steadyrl.types import MicroBatch, Routes


@dataclass(frozen=True, kw_only=True, slots=True)
class OldPass:
    """A micro-batch after the θ_old pass."""

    micro: MicroBatch
    """Positions and facts."""
    old_logprobs: Float[Tensor, "tokens"]
    """log π_old(y_t)."""
    entropy: Float[Tensor, "tokens"]
    """Entropy of π_old where each token was sampled."""
    preferred: Routes | None
    """Experts that the trainer's own routers chose, or under R3 would have chosen; flat over positions."""
    differs: Bool[Tensor, "positions layers"] | None
    """Whether they are others than the rollout's; None where one of the two is not known."""
    margins: Float[Tensor, "positions layers"] | None
    """How near to a tie those choices were."""
    replayed: Routes | None
    """Experts that every update must use: e^π_old under R2, e^μ_old under R3; None: route natively."""


Forward = AbstractContextManager[tuple[Float[Tensor, "tokens"], OldPass]]
"""A forward of an update: log π_θ with its graph, and the θ_old pass; the backward belongs inside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """What an update leaves to be measured, per token."""

    logprobs: Float[Tensor, "tokens"]
    """log π_θ(y_t) as the update saw it."""
    old: OldPass
    """The micro-batch."""
    terms: Terms
    """Its terms, detached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One gradient update."""

    traces: tuple[Traced, ...]
    """Its micro-batches."""
    objective: float
    """Value of the surrogate."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    finite: bool
    """Both were finite, and so was every log π_θ: the weights moved."""
    moved: Moved | None = None
    """How many weights it changed; None where it was skipped."""


@contextmanager
def _routing(policy: Policy, routes: Routes | None) -> Iterator[Recorder | None]:
    """Replay `routes`; without any, watch the routers; a dense model has none."""
    if not is_moe(policy.model):
        yield None
        return
    watched = record(policy.model, margins=True) if routes is None else replay(policy.model, routes, margins=True)
    with watched as recorder:
        yield recorder


@contextmanager
def first_forward(
    policy: Policy, micro: MicroBatch, *, mode: str, temperature: float
) -> Iterator[tuple[Float[Tensor, "tokens"], OldPass]]:
    """A forward at θ_old: log π_θ, and what it says of π_old, which is the same.

    It routes naturally under `none` and R2, and replays the rollout's experts under R3. What it computes is the θ_old
    pass, and for the first mini-batch of a step also the forward of its update.

    Raises:
        ValueError: R3, and the engine returned no routes.
    """
    rollout = micro.batch.routes
    if mode == "R3" and rollout is None:
        raise ValueError('update.replay = "R3" needs the routes of the rollout, and the engine returned none')
    with _routing(policy, rollout if mode == "R3" else None) as recorder:
        logprobs, entropy = response_logprobs(policy.model, micro.batch, temperature=temperature)
        preferred = None if recorder is None else recorder.routes()
        replayed = {"none": None, "R2": preferred, "R3": rollout}[mode]
        yield (
            logprobs,
            OldPass(
                micro=micro,
                old_logprobs=logprobs.detach(),
                entropy=entropy,
                preferred=preferred,
                differs=None if preferred is None or rollout is None else ledger.routes_differ(preferred, rollout),
                margins=None if recorder is None else recorder.margins(),
                replayed=replayed,
            ),
        )


@contextmanager
def later_forward(
    policy: Policy, old: OldPass, *, temperature: float
) -> Iterator[tuple[Float[Tensor, "tokens"], OldPass]]:
    """A forward at a later θ, with the experts that were fixed at θ_old; log π_θ, and what was known."""
    with nullcontext() if old.replayed is None else replay(policy.model, old.replayed):
        yield response_logprobs(policy.model, old.micro.batch, temperature=temperature)[0], old


@torch.no_grad()
def old_pass(policy: Policy, micro: MicroBatch, *, mode: str, temperature: float) -> OldPass:
    """The θ_old pass over a micro-batch.

    It runs on the very micro-batches that the updates run on, so that at θ_old the ratio π_θ/π_old is exactly 1.
    """
    with first_forward(policy, micro, mode=mode, temperature=temperature) as (_, old):
        return old


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    forwards: Sequence[Forward],
    *,
    responses: int,
    groups: int,
    batch_tokens: int | None = None,
    max_grad_norm: float | None,
) -> Outcome | None:
    """One gradient step on one mini-batch; None where every advantage is zero, which moves nothing.

    Args:
        forwards: a forward, not yet begun, for each micro-batch with an advantage.
        responses: responses of the mini-batch that have a reward, the zero-advantage ones included.
        groups: groups of the mini-batch with such a response.
        batch_tokens: tokens of those responses, for an objective that divides by them.
        max_grad_norm: the norm that the gradient is scaled down to.
    """
    if not forwards:
        return None
    optimizer.zero_grad()
    counts = {"responses": responses, "groups": groups, "batch_tokens": batch_tokens}
    traces = [_backward(objective, forward, counts) for forward in forwards]
    limit = math.inf if max_grad_norm is None else max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(policy.model.parameters(), limit))
    value = float(torch.stack([trace.terms.surrogate.sum() for trace in traces]).sum())
    seen = bool(torch.cat([trace.logprobs for trace in traces]).isfinite().all())
    finite = math.isfinite(norm) and math.isfinite(value) and seen
    moved = None
    if finite:
        before = sampled(policy.model)
        optimizer.step()
        moved = moved_since(before, policy.model)
    return Outcome(traces=tuple(traces), objective=value, grad_norm=norm, finite=finite, moved=moved)


def _backward(objective: Objective, forward: Forward, counts: Mapping[str, Any]) -> Traced:
    """Forward and backward of one micro-batch; the backward lies inside the replay, for recomputed activations."""
    with forward as (logprobs, old):
        tokens = old.micro.tokens(old.old_logprobs)
        terms = objective(logprobs, tokens, **counts)
        (-terms.surrogate.sum()).backward()
    detached = terms._replace(surrogate=terms.surrogate.detach())
    return Traced(logprobs=logprobs.detach(), old=old, terms=detached)


def traced(outcomes: Sequence[Outcome | None]) -> list[OldPass]:
    """The micro-batches that updates have seen."""
    return [trace.old for outcome in outcomes if outcome is not None for trace in outcome.traces]


def old_pass_metrics(passes: Sequence[OldPass]) -> dict[str, float]:
    """The θ_old pass over all tokens of the step, and how they were packed."""
    batches = [s.micro.batch for s in passes]
    fed = sum(b.fed_tokens for b in batches)
    return {
        "policy/entropy": torch.cat([s.entropy for s in passes]).mean().item(),
        "update/padding": 1.0 - fed / sum(len(b.cells) for b in batches),
        "update/computed": sum(len(b.input_ids) for b in batches) / fed,
    }


def step_ledger(
    passes: Sequence[OldPass], outcomes: Sequence[Outcome | None], *, policy_version: int
) -> list[ledger.Row]:
    """Both factors of eq. 5 and their product, each over all tokens and by bucket (`ledger.table`).

    The mismatch over all tokens of the step; staleness and product as the updates met them, over the tokens of
    responses whose advantage is not zero.

    Args:
        passes: the θ_old pass.
        outcomes: the updates, in order.
        policy_version: of θ_old.
    """
    apart = torch.cat([mismatch(s.old_logprobs, s.micro.rollout_logprobs) for s in passes])
    rows = _table({"mismatch": apart}, passes, [policy_version] * len(passes))
    moved = list(zip(outcomes, _versions(outcomes, policy_version), strict=True))
    traces = [(trace, version) for outcome, version in moved if outcome is not None for trace in outcome.traces]
    if traces:
        met = {
            "product": torch.cat([product(t.logprobs, t.old.micro.rollout_logprobs) for t, _ in traces]),
            "staleness": torch.cat([staleness(t.logprobs, t.old.old_logprobs) for t, _ in traces]),
        }
        rows += _table(met, [t.old for t, _ in traces], [version for _, version in traces])
    return rows


def _versions(outcomes: Sequence[Outcome | None], first: int) -> list[int]:
    """The policy version that each update began with."""
    moved = [outcome is not None and outcome.finite for outcome in outcomes]
    return list(itertools.accumulate(moved[:-1], initial=first)) if moved else []


def _table(measured: Mapping[str, Tensor], passes: Sequence[OldPass], versions: Sequence[int]) -> list[ledger.Row]:
    """The ledger of tokens, split in every way; `versions` are those of the weights that each micro-batch met."""
    micros = [s.micro for s in passes]
    response = _responses(micros)
    splits = [
        ledger.by_position(response),
        ledger.by_advantage(torch.cat([m.advantages for m in micros])),
        ledger.by_version(torch.cat([v - m.policy_version for v, m in zip(versions, micros, strict=True)])),
    ]
    chosen = [
        (s.differs[b.predicting], routed(b.routes)[b.predicting].all(dim=1))
        for s in passes
        if s.differs is not None and (b := s.micro.batch).routes is not None
    ]
    if chosen:
        splits.append(ledger.by_routes(*(torch.cat(parts) for parts in zip(*chosen, strict=True))))
    return ledger.table(measured, response, splits)


def routed(routes: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether the engine returned experts, for each position and layer."""
    return routes[..., 0].int() != torch.iinfo(routes.dtype).max


def _responses(micros: Sequence[MicroBatch]) -> Tensor:
    """The response of each token, told apart over micro-batches too; each has fewer responses than tokens."""
    sizes = [0, *itertools.accumulate(len(m.response) for m in micros)]
    return torch.cat([m.response + size for m, size in zip(micros, sizes, strict=False)])


def update_metrics(outcomes: Sequence[Outcome | None], *, responses: int | None = None) -> dict[str, float]:
    """What the updates did, and how far their token-level objective was from the sequence-level one.

    Over the tokens of responses whose advantage is not zero; where there is none, nothing was updated, and both means
    are 0. Where no update was finite they are NaN.

    Args:
        outcomes: the updates, in order.
        responses: how many responses of their mini-batches have a reward, over which the mean of Δ runs; None: those
            that the updates met.
    """
    moved = [o for o in outcomes if o is not None]
    finite = [o for o in moved if o.finite]
    none = math.nan if moved else 0.0
    metrics: dict[str, float] = {
        "update/objective": fmean(o.objective for o in finite) if finite else none,
        "update/grad_norm": fmean(o.grad_norm for o in finite) if finite else none,
        "update/skipped": len(moved) - len(finite),
    }
    counted = [o.moved for o in finite if o.moved is not None]
    if pulled := sum(one.pulled for one in counted):
        metrics["update/moved"] = sum(one.changed for one in counted) / pulled
    traces = [trace for outcome in moved for trace in outcome.traces]
    if not traces:
        return metrics
    response = _responses([t.old.micro for t in traces])
    gap = value_gap(torch.cat([product(t.logprobs, t.old.micro.rollout_logprobs) for t in traces]), response)
    excess = torch.cat([t.old.micro.excess for t in traces])[begins(response)]
    errors = surrogate_error(gap, excess, responses=responses)
    metrics |= {f"surrogate/{name}": value for name, value in errors.items()}
    shares = {
        "weight/truncated": [t.terms.truncated for t in traces],
        "clip/low": [t.terms.clipped.low for t in traces],
        "clip/high": [t.terms.clipped.high for t in traces],
    }
    return metrics | {name: torch.cat(parts).float().mean().item() for name, parts in shares.items()}


def learning_rate(step: int, *, peak: float, total: int, warmup: int, schedule: str) -> float:
    """Learning rate of gradient step `step` of `total`, counted from 1: a linear rise, then the schedule.

    Linear and cosine fall from the peak, at the end of the warm-up, to 0, just after the last step.
    """
    if step <= warmup:
        return peak * step / warmup
    progress = (step - 1 - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return peak * (1.0 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak
