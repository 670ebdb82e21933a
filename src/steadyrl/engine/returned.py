"""What a real engine returns, held against what was asked for before any of it reaches the trainer."""

from collections.abc import Sequence

import numpy as np
import torch

from steadyrl.engine.base import EngineError
from steadyrl.model.routing import route_dtype
from steadyrl.types import Routes


def checked_routes(
    found: np.ndarray | None, *, rows: int, layers: Sequence[int], slots: int | None, experts: int
) -> Routes:
    """The routes of one completion, [rows, mixture-of-experts layers, slots], in the type that the trainer reads.

    Args:
        found: what the engine returned: [rows, all layers, slots], dense layers filled with anything.
        rows: fed positions: tokens of prompt and response, less the last.
        layers: which of all layers are mixtures of experts, in order.
        slots: experts per token; None where the model does not say.
        experts: experts per layer.

    Raises:
        EngineError: there are none, they have other sizes, an id is out of range, a row names an expert twice (as rows
            of zeros do), or all are zero.
    """
    if found is None:
        raise EngineError(f"the engine returned no routes for a sequence of {rows + 1} tokens; R3 needs them")
    shape = (rows, max(layers) + 1, found.shape[-1] if slots is None else slots)
    if found.ndim != 3 or found.shape[0] != rows or found.shape[1] < shape[1] or found.shape[2] != shape[2]:
        raise EngineError(f"the engine returned routes {found.shape}; a sequence of {rows + 1} tokens needs {shape}")
    chosen = found[:, list(layers)].astype(np.int32)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < experts:
        raise EngineError(
            f"the engine returned expert ids from {chosen.min()} to {chosen.max()}; a layer has {experts} experts"
        )
    ordered = np.sort(chosen, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(axis=-1)
    if twice.any():
        row, layer = np.argwhere(twice)[0].tolist()
        raise EngineError(
            f"the engine returned {chosen[row, layer].tolist()} as the experts of position {row}, layer "
            f"{layers[layer]}: one of them twice, as in a row that was never written"
        )
    if not chosen.any() and experts > 1:
        raise EngineError(f"the engine returned routes of zeros alone for a sequence of {rows + 1} tokens")
    return torch.from_numpy(chosen).to(route_dtype(experts))
