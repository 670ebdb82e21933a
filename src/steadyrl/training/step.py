"""One gradient step on one mini-batch."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from steadyrl.model.moved import Moved, moved_since, sampled
from steadyrl.training.forward import Trace


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientStep:
    """One gradient step."""

    traces: tuple[Trace, ...]
    """Its micro-batches."""
    objective: float
    """Value of the surrogate."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    finite: bool
    """Both were finite, and so was every log π_θ: the weights moved."""
    moved: Moved | None = None
    """How many weights it changed; None where it was skipped."""


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backwards: Iterable[Callable[[], Trace]],
    *,
    max_grad_norm: float | None,
) -> GradientStep | None:
    """Take one gradient step; None where there is no micro-batch, because every advantage is zero.

    A step whose objective, gradient norm or log-probs are not finite is skipped: the weights stay what they were.

    Args:
        model: π.
        optimizer: over its weights.
        backwards: for each micro-batch with an advantage, what adds its gradient.
        max_grad_norm: the norm that the gradient is scaled down to; None: any.
    """
    optimizer.zero_grad()
    traces = tuple(backward() for backward in backwards)
    if not traces:
        return None
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), math.inf if max_grad_norm is None else max_grad_norm))
    value = float(torch.stack([trace.terms.surrogate.sum() for trace in traces]).sum())
    seen = bool(torch.cat([trace.logprobs for trace in traces]).isfinite().all())
    finite = math.isfinite(norm) and math.isfinite(value) and seen
    moved = None
    if finite:
        before = sampled(model)
        optimizer.step()
        moved = moved_since(before, model)
    return GradientStep(traces=traces, objective=value, grad_norm=norm, finite=finite, moved=moved)
