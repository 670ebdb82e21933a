"""What the experts of each block were handed, and what they should have been handed by the family's formula."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from steadyrl.conformance.families import Gate
from steadyrl.routing import is_experts, moe_blocks


class NotApplicable(Exception):
    """The model lacks what a check is about; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Handed:
    """One forward of one block. Gate weights are dense, 0 for an expert that was not chosen: order is no matter."""

    weights: Float[Tensor, "positions experts"]
    """As the experts module received them."""
    logits: Float[Tensor, "positions outputs"]
    """The router's dense logits, recomputed in float32 from its input and weight."""


def dense(
    weights: Float[Tensor, "positions slots"], chosen: Tensor, experts: int
) -> Float[Tensor, "positions experts"]:
    """The weight of every expert at every position."""
    return torch.zeros(len(weights), experts).scatter_(1, chosen.long(), weights.float())


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[list[Handed]]:
    """What every block hands to its experts while the context is open, in the order of the forwards."""
    seen: list[Handed] = []
    handles = []
    for block, experts in moe_blocks(model):
        parent, owner = router_of(block, experts)
        inputs: list[Tensor] = []
        for module in (parent, owner):  # some routers use the weight of a child without calling it

            def remember(module: nn.Module, args: tuple[Any, ...], inputs: list[Tensor] = inputs) -> None:
                inputs[:] = [args[0].detach()]

            handles.append(module.register_forward_pre_hook(remember))

        def note(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            inputs: list[Tensor] = inputs,
            owner: nn.Module = owner,
            experts: int = experts,
        ) -> None:
            hidden = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            weight, bias = owner._parameters["weight"], owner._parameters.get("bias")
            assert weight is not None
            logits = F.linear(hidden, weight.detach().float(), None if bias is None else bias.detach().float())
            seen.append(Handed(weights=_received(args, kwargs, hidden, experts), logits=logits))

        module = next(child for child in block.modules() if is_experts(child))
        handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _received(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor, experts: int) -> Tensor:
    given = [*args, *kwargs.values()]
    if len(given) == 3:
        return dense(given[2].detach(), given[1], experts)
    scaled = given[0].detach().float().view(experts, *hidden.shape)  # every position for every expert, times its gate
    return ((scaled * hidden).sum(dim=-1) / hidden.square().sum(dim=-1)).T


def router_of(block: nn.Module, experts: int) -> tuple[nn.Module, nn.Module]:
    """The module that holds the router's weight, [experts or a few more, hidden], and the module around it."""
    for name, module in block.named_modules():
        weight = module._parameters.get("weight")
        routes = any(part in ("gate", "router", "wg", "classifier", "proj", "layer") for part in name.split("."))
        if weight is not None and weight.ndim == 2 and routes and experts <= weight.shape[0] <= experts + 2:
            return block.get_submodule(name.rpartition(".")[0]), module
    raise NotApplicable(f"{type(block).__name__} has no router with a weight of {experts} rows")


def gate_weights(
    gate: Gate,
    logits: Float[Tensor, "positions outputs"],
    chosen: Int[Tensor, "positions slots"],
    config: PreTrainedConfig,
) -> Float[Tensor, "positions slots"]:
    """The weights of the chosen experts by the family's formula, from the dense logits."""
    if gate.score == "sparsemixer":
        return _sparsemixer(logits, chosen, config.router_jitter_noise)
    scores = {
        "softmax": lambda: logits.softmax(dim=-1),
        "sigmoid": logits.sigmoid,
        "with_shared": logits.sigmoid,
        "sqrtsoftplus": lambda: F.softplus(logits).sqrt(),
    }[gate.score]()
    weights = scores.gather(-1, chosen)
    total = weights.sum(dim=-1, keepdim=True)
    if gate.score == "with_shared":
        total = total + scores[:, -config.n_shared_experts :].sum(dim=-1, keepdim=True)
    normalised = config.norm_topk_prob if gate.normalised == "as configured" else gate.normalised
    weights = weights / total if normalised else weights
    return weights if gate.scaled_by is None else weights * getattr(config, gate.scaled_by)


def _sparsemixer(logits: Tensor, chosen: Tensor, jitter: float) -> Tensor:
    """SparseMixer-v2 at inference: each slot is a softmax over the experts not far below the one it chose."""
    left, weights = logits.clone(), []
    for slot in chosen.split(1, dim=-1):
        threshold = logits.gather(-1, slot)
        far = (threshold - logits) / logits.abs().clamp(min=threshold) > 2 * jitter
        weights.append(left.masked_fill(far, float("-inf")).softmax(dim=-1).gather(-1, slot))
        left = left.scatter(-1, slot, float("-inf"))
    return torch.cat(weights, dim=-1)
