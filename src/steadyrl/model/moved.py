"""Which share of the weights an update changed: in bfloat16 small updates are rounded away without a trace."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SAMPLE = 2**16
"""Largest sample of one tensor, at even distances. Of a smaller tensor, all weights are compared."""

LEAST_MOVED = 0.1
"""A smaller share is worth a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """The sampled weights whose gradient is not zero."""

    pulled: int
    """How many they are."""
    changed: int
    """How many of them have another value after the update."""


def sampled(model: nn.Module) -> Tensor:
    """Return a copy of each parameter's sample, joined, to compare with the weights after an update."""
    return torch.cat([_sample(weight) for weight in model.parameters()])


@torch.no_grad()
def moved_since(before: Tensor, model: nn.Module) -> Moved:
    """Count the weights that have a gradient, and those of them that changed.

    Args:
        before: `sampled(model)`, taken before the update.
        model: after the update, with the gradients that made it.
    """
    weights = list(model.parameters())
    gradients = [_sample(torch.zeros_like(w) if w.grad is None else w.grad) for w in weights]
    pulled = torch.cat(gradients) != 0.0
    changed = pulled & (torch.cat([_sample(weight) for weight in weights]) != before)
    counts = torch.stack([pulled.sum(), changed.sum()]).tolist()
    return Moved(pulled=counts[0], changed=counts[1])


def unmoved(metrics: Mapping[str, object], *, step: int, dtype: str) -> str | None:
    """Return what to tell the user of a step that changed too few of the weights; None if it changed enough."""
    share = metrics.get("update/moved")
    if not isinstance(share, float) or share >= LEAST_MOVED:
        return None
    return (
        f"step {step} changed {share:.1%} of the weights that have a gradient (update/moved): the other updates are "
        f'smaller than {dtype} can hold. Use runtime.dtype = "float32" or a larger optimizer.learning_rate'
    )


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().flatten()
    stride = -(-flat.numel() // SAMPLE) | 1  # odd: it meets every column of a matrix whose width is a power of two
    return flat[::stride] if flat.numel() > SAMPLE else flat
