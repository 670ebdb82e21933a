"""Low-precision inference, emulated: what real FP8 engines quantise, this quantises.

W8A8 as vLLM and SGLang run it: weights of linear layers and experts have one scale per output channel, activations
one per token, both rounded to e4m3 and multiplied in higher precision. Router, norms, embeddings and output
projection keep theirs. Rounding and scaling back in float gives the numbers of such an engine up to the order of
summation, so that μ differs from π for the reason it differs in production.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steadyrl.model.decoding import E4M3_MAX

ROUTER_NAMES = {"gate", "router", "shared_expert_gate"}
"""Last part of the name of linear layers that choose or weigh experts; kept in full precision."""


def round_e4m3(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x rounded to e4m3 with one scale, max|x|/448, for each slice along `dim`."""
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_(min=1e-12).div_(E4M3_MAX)
    return x.div(scale).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)


def quantised_weights(model: nn.Module) -> dict[str, int]:
    """Name of each parameter that is quantised, and the dimension that its output channels sum over."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and name.rsplit(".", 1)[-1] not in ROUTER_NAMES:
            found[f"{name}.weight"] = -1
        elif _is_experts(module):
            inputs = 1 if module.is_transposed else 2
            found |= {f"{name}.{p}": inputs for p, w in module.named_parameters(recurse=False) if w.ndim == 3}
    return found


def quantise_activations(model: nn.Module) -> None:
    """Round, from now on, what enters each linear layer and each expert, and what enters its second projection."""
    linears = {name.removesuffix(".weight") for name in quantised_weights(model)}
    for name, module in model.named_modules():
        if _is_experts(module):
            module.register_forward_pre_hook(_round_first)
            _round_between(module)
        elif name in linears:
            module.register_forward_pre_hook(_round_first)


def _is_experts(module: nn.Module) -> bool:
    return hasattr(type(module), "_apply_gate")


def _round_first(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_e4m3(args[0]), *args[1:])


def _round_between(experts: nn.Module) -> None:
    """Round the activations between an expert's two projections."""
    if experts.has_gate:
        gate = experts._apply_gate
        experts._apply_gate = lambda projected: round_e4m3(gate(projected))
    else:
        activation = experts.act_fn
        experts.act_fn = lambda projected: round_e4m3(activation(projected))
