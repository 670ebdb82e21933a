"""The metrics and the ledger of a global step, assembled from what its parts returned."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor

from steadyrl.algo import informative, ledger, mismatch, product, staleness, surrogate_error, value_gap
from steadyrl.algo.ratio import begins
from steadyrl.clock import Clock
from steadyrl.measure.routes import route_metrics, routed
from steadyrl.rollout.groups import Group, Rewards
from steadyrl.train.forward import OldPass
from steadyrl.train.step import GradientStep
from steadyrl.train.trainer import Trained
from steadyrl.types import MicroBatch


def step_metrics(
    groups: Sequence[Group], rewards: Rewards, trained: Trained, clock: Clock, *, correct_at: float
) -> tuple[dict[str, float], list[ledger.Row]]:
    """What a step sampled, earned, and did to the policy, and how long it took: its metrics, and its ledger.

    Args:
        groups: the responses.
        rewards: what they earned.
        trained: what the trainer did with them.
        clock: of the step, which ends now.
        correct_at: a response with this reward is right.
    """
    seconds = clock.total(trained.seconds)
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    rows = step_ledger(trained.old, trained.updates, policy_version=trained.version)
    metrics = {
        "policy_version": groups[0].completions[0].policy_version,
        **rollout_metrics(groups, rewards, correct_at=correct_at),
        **old_pass_metrics(trained.old),
        **ledger.summary(rows),
        **route_metrics(trained.old),
        **update_metrics(trained.updates, responses=int(rewards.known.sum())),
        "update/learning_rate": trained.learning_rate,
        **clock.seconds,
        "throughput/tokens_per_second": tokens / seconds,
        "memory/peak_gib": clock.peak_memory(),
    }
    return metrics, rows


def rollout_metrics(groups: Sequence[Group], rewards: Rewards, *, correct_at: float) -> dict[str, float]:
    """What the step sampled, in numbers."""
    completions = [c for group in groups for c in group.completions]
    values, known = rewards.values, rewards.known
    lowest, highest = (values[known].min(), values[known].max()) if known.any() else (math.nan, math.nan)
    return {
        "reward/mean": values[known].mean().item(),
        "reward/min": float(lowest),
        "reward/max": float(highest),
        "reward/accuracy": (values[known] >= correct_at).float().mean().item(),
        "reward/failures": len(rewards.failed),
        "reward/uniform_groups": (~informative(values, known=known)).float().mean().item(),
        "response/length": sum(len(c.token_ids) for c in completions) / len(completions),
        "response/truncated": sum(c.finish_reason == "length" for c in completions) / len(completions),
        **{f"reward/{name}": float(part.nanmean()) for name, part in rewards.parts.items()},
    }


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
    passes: Sequence[OldPass], updates: Sequence[GradientStep | None], *, policy_version: int
) -> list[ledger.Row]:
    """Both factors of eq. 5 and their product, each over all tokens and by bucket (`ledger.table`).

    The mismatch over all tokens of the step; staleness and product as the updates met them, over the tokens of
    responses whose advantage is not zero.

    Args:
        passes: the θ_old pass.
        updates: the updates, in order.
        policy_version: of θ_old.
    """
    apart = torch.cat([mismatch(s.old_logprobs, s.micro.rollout_logprobs) for s in passes])
    rows = _table({"mismatch": apart}, passes, [policy_version] * len(passes))
    moved = list(zip(updates, _versions(updates, policy_version), strict=True))
    traces = [(trace, version) for done, version in moved if done is not None for trace in done.traces]
    if traces:
        met = {
            "product": torch.cat([product(t.logprobs, t.old.micro.rollout_logprobs) for t, _ in traces]),
            "staleness": torch.cat([staleness(t.logprobs, t.old.old_logprobs) for t, _ in traces]),
        }
        rows += _table(met, [t.old for t, _ in traces], [version for _, version in traces])
    return rows


def _versions(updates: Sequence[GradientStep | None], first: int) -> list[int]:
    """The policy version that each update began with."""
    moved = [done is not None and done.finite for done in updates]
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


def _responses(micros: Sequence[MicroBatch]) -> Tensor:
    """The response of each token, numbered through all micro-batches; each has fewer responses than tokens."""
    sizes = [0, *itertools.accumulate(len(m.response) for m in micros)]
    return torch.cat([m.response + size for m, size in zip(micros, sizes, strict=False)])


def update_metrics(updates: Sequence[GradientStep | None], *, responses: int | None = None) -> dict[str, float]:
    """What the updates did, and how far their token-level objective was from the sequence-level one.

    Over the tokens of responses whose advantage is not zero; where there is none, nothing was updated, and both means
    are 0. Where no update was finite they are NaN.

    Args:
        updates: the updates, in order.
        responses: how many responses of their mini-batches have a reward, over which the mean of Δ runs; None: those
            that the updates met.
    """
    moved = [o for o in updates if o is not None]
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
    traces = [trace for done in moved for trace in done.traces]
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
