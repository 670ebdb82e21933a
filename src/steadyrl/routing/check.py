"""Whether routes fit a model: their type, layers and slots, and the experts of each row."""

import torch
from torch import nn
from transformers import PreTrainedModel

from steadyrl.routing.blocks import blocks_of, route_dtype, slots_of
from steadyrl.routing.guard import RoutingError
from steadyrl.types import Routes


def check_routes(model: PreTrainedModel, routes: Routes) -> None:
    """Check routes against a model: their type, layers and slots, and the experts of each row.

    Raises:
        RoutingError: they are not this model's, or a row is neither distinct experts nor the sentinel alone.
    """
    blocks = blocks_of(model)
    check_shape(routes, blocks)
    check_ids(routes, blocks)


def check_shape(routes: Routes, blocks: list[tuple[nn.Module, int]]) -> None:
    """Check the type, the layers and the slots of routes, but not their values.

    Raises:
        RoutingError: they are not those of a model with these blocks.
    """
    layers, expected = len(blocks), route_dtype(max(experts for _, experts in blocks))
    if routes.dtype != expected:
        raise RoutingError(f"routes are {routes.dtype}, this model's are {expected}")
    if routes.ndim < 3:
        raise RoutingError(f"routes are {tuple(routes.shape)}, they must be (positions, layers, slots)")
    if routes.shape[-2] != layers:
        raise RoutingError(f"routes have {routes.shape[-2]} layers, the model has {layers} mixture-of-experts layers")
    for layer, (block, _) in enumerate(blocks):
        slots = slots_of(block)
        if slots not in (None, routes.shape[-1]):
            raise RoutingError(f"routes have {routes.shape[-1]} slots, layer {layer} chooses {slots} experts")


def check_ids(routes: Routes, blocks: list[tuple[nn.Module, int]]) -> None:
    """Check that every row holds distinct experts of its layer, or only the sentinel; the device is waited for once.

    Slot by slot: reductions over a handful of slots would take longer than the replay itself.

    Raises:
        RoutingError: a row does not. The message names the first one.
    """
    flat = routes.reshape(-1, *routes.shape[-2:])
    narrow = flat.dtype == torch.uint8
    ids = flat if narrow else flat.view(torch.int16)  # torch does not compare 16 unsigned bits
    counts = torch.tensor([experts for _, experts in blocks], dtype=ids.dtype, device=ids.device)
    slots = ids.movedim(-1, 0).contiguous()
    absent = [slot == (255 if narrow else -1) for slot in slots]
    outside, twice, partly = (torch.zeros_like(absent[0]) for _ in range(3))
    for n, slot in enumerate(slots):
        outside |= ((slot >= counts) | (slot < 0)) & ~absent[n]
        partly |= absent[n] != absent[0]
        for other in slots[:n]:
            twice |= (slot == other) & ~absent[n]
    faults = {
        "an expert id out of range": outside,
        "an expert twice": twice,
        "the sentinel in some slots and not in others": partly,
    }
    seen = torch.stack([fault.any() for fault in faults.values()]).tolist()  # one wait
    for (what, fault), found in zip(faults.items(), seen, strict=True):
        if found:
            position, layer = fault.nonzero()[0].tolist()
            raise RoutingError(
                f"routes at position {position}, layer {layer} are {flat[position, layer].tolist()}: {what}; the layer "
                f"has {blocks[layer][1]} experts, the sentinel is {torch.iinfo(routes.dtype).max}"
            )
