"""Where the mixture-of-experts blocks of a model are, and how many experts each has and chooses."""

import inspect
from functools import cache
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from steadyrl.routing.guard import RoutingError


def route_dtype(experts: int) -> torch.dtype:
    """The smallest unsigned type that holds every expert id and, above them, the sentinel."""
    return torch.uint8 if experts < 256 else torch.uint16


@cache
def takes_a_choice(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are handed the chosen experts and their gate weights."""
    return hasattr(kind, "_apply_gate") or "top_k_index" in inspect.signature(kind.forward).parameters


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a block.

    transformers marks its classes with a gating function. Unmarked ones are handed the choice as `top_k_index`, or
    hold all weights stacked and are fed every position once for every expert, scaled by a gate that is mostly 0.
    """
    return takes_a_choice(type(module)) or (
        "num_experts" in vars(module)
        and sum(p.ndim == 3 and p.shape[0] == module.num_experts for p in module.parameters(recurse=False)) > 1
    )


def moe_blocks(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Mixture-of-experts blocks in layer order, each with its number of experts.

    A block is the parent of experts; adapters may be between the two (`experts.base_layer`).
    """
    blocks: dict[str, int] = {}
    for name, module in model.named_modules():
        if is_experts(module):
            parent = name.split(".base_layer")[0].rpartition(".")[0]
            # identity experts come on top of those that have weights
            blocks[parent] = cast(int, vars(module).get("total_experts") or module.num_experts)
    return [(model.get_submodule(name), experts) for name, experts in blocks.items()]


def is_moe(model: nn.Module) -> bool:
    """Whether the model has a mixture-of-experts block."""
    return bool(moe_blocks(model))


def blocks_of(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The blocks of a model that must have some."""
    blocks = moe_blocks(model)
    if blocks:
        return blocks
    config = model.config.get_text_config().to_dict()
    named = {k: v for k, v in config.items() if "expert" in k and isinstance(v, int) and v > 1}
    if named:
        raise RoutingError(f"{type(model).__name__} has experts ({named}) in modules of a kind that is not known here")
    raise RoutingError(f"{type(model).__name__} is dense: it has no routes to replay")


def slots_of(block: nn.Module) -> int | None:
    """How many experts a block's router chooses, where it or its config says so under one of the usual names."""
    for module in block.modules():
        if "top_k" in vars(module):
            return cast(int, module.top_k)
    for module in block.modules():
        config = vars(module).get("config")
        if config is not None and "top_k_experts" in vars(config):
            return config.top_k_experts
    return None
