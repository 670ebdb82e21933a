"""How far the routers of the two engines are apart, and what replay does about it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steadyrl.algo import ledger, mismatch
from steadyrl.engine.base import EngineError
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_responses
from steadyrl.types import Completion, Response
from steadyrl.update import OldPass, old_pass, routed


def unrouted(completions: Sequence[Completion], *, limit: float) -> dict[str, float]:
    """Share of the fed positions that came without routes in some layer, which the trainer will then route by itself.

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


def replay_effect(
    policy: Policy, responses: Sequence[Response], *, micro_tokens: int, temperature: float
) -> dict[str, float]:
    """D_KL[μ‖π_old], by k3, of the same responses with the trainer's experts and with the rollout's.

    `replay/removed` is 1 − (with the rollout's)/(with the trainer's): the share of it that stems from routing. It is
    noisy, for it rests on a few responses, and negative where replay makes the engines differ more.
    """
    if any(r.completion.routes is None for r in responses):
        return {}
    micros = pack_responses(responses, micro_tokens=micro_tokens, one_block=policy.one_block, device=policy.device)
    rollout = torch.cat([m.rollout_logprobs for m in micros])
    natural, replayed = (
        ledger.k3(
            mismatch(
                torch.cat([old_pass(policy, m, mode=mode, temperature=temperature).old_logprobs for m in micros]),
                rollout,
            )
        )
        .mean()
        .item()
        for mode in ("none", "R3")
    )
    metrics = {"replay/k3_natural": natural, "replay/k3_replayed": replayed}
    return metrics | ({"replay/removed": 1.0 - replayed / natural} if natural > 0.0 else {})
