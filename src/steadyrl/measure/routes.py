"""How far the routers of the two engines are apart, and what replay does about it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from steadyrl.algo import ledger, mismatch
from steadyrl.engine.base import EngineError
from steadyrl.model.loading import Policy
from steadyrl.train.forward import OldPass, Replay, old_pass
from steadyrl.types import Completion, MicroBatch, Routes


def routed(routes: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether the engine returned experts, for each position and layer."""
    return routes[..., 0].int() != torch.iinfo(routes.dtype).max


def unrouted(completions: Sequence[Completion], *, limit: float) -> dict[str, float]:
    """Share of the fed positions that came without routes in some layer, which the trainer then routes natively.

    Raises:
        EngineError: it is above `limit`.
    """
    routes = [c.routes for c in completions if c.routes is not None]
    if not routes:
        return {}
    missing = sum(int((~routed(r).all(dim=1)).sum()) for r in routes)
    share = missing / sum(len(r) for r in routes)
    if share > limit:
        raise EngineError(
            f"the engine returned no experts for {share:.1%} of the positions, above update.max_unrouted = {limit}. "
            "Find out why, or raise the limit; the trainer then routes these positions itself"
        )
    return {"routes/unrouted": share}


def route_metrics(passes: Sequence[OldPass]) -> dict[str, float]:
    """Expert sets of the θ_old pass against the rollout's: how many differ, in which layers, and how near to a tie.

    Under R3 the trainer's are those that its routers would have chosen above the replayed layers.
    """
    seen = [_differences(s) for s in passes if s.differs is not None]
    if not seen:
        return {}
    differs, margins, there = (torch.cat(parts) for parts in zip(*seen, strict=True))
    metrics = {"routes/disagreement": (differs.sum() / there.sum()).item()}
    by_layer = differs.sum(dim=0) / there.sum(dim=0)
    metrics |= {f"routes/layer_{n}": share for n, share in enumerate(by_layer.tolist())}
    apart = margins[differs & margins.isfinite()]
    if len(apart):
        metrics["routes/margin"] = apart.mean().item()
    return metrics


def _differences(old: OldPass) -> tuple[Tensor, Tensor, Tensor]:
    """By position and layer: whether two known sets differ, the margin of the trainer's, and whether both are known."""
    theirs, differs, margins = old.micro.batch.routes, old.differs, old.margins
    assert theirs is not None
    assert differs is not None
    assert margins is not None
    there = routed(theirs)
    return differs & there, margins, there


def replay_effect(policy: Policy, micros: Sequence[MicroBatch], *, temperature: float) -> dict[str, float]:
    """D_KL[μ‖π_old], by k3, of the same responses with the trainer's experts and with the rollout's.

    `replay/removed` is 1 − (with the rollout's)/(with the trainer's): the share of the divergence that comes from
    routing. It is noisy, because it uses few trajectories. It is negative if replay makes the engines differ more.
    """
    if any(micro.batch.routes is None for micro in micros):
        return {}
    rollout = torch.cat([micro.rollout_logprobs for micro in micros])

    def k3(replay: Replay) -> float:
        passes = [old_pass(policy, micro, replay=replay, temperature=temperature) for micro in micros]
        return ledger.k3(mismatch(torch.cat([old.old_logprobs for old in passes]), rollout)).mean().item()

    natural, replayed = k3("none"), k3("R3")
    metrics = {"replay/k3_natural": natural, "replay/k3_replayed": replayed}
    return metrics | ({"replay/removed": 1.0 - replayed / natural} if natural > 0.0 else {})
