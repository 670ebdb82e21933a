"""Emulates low-precision inference: it quantises what real engines quantise.

This is W8A8 as in vLLM and SGLang. Weights of linear layers and experts have one scale per output channel, activations
one scale per token. Both are rounded to e4m3 and multiplied in higher precision. Router, norms, embeddings and output
projection keep their precision. Values are rounded and scaled back in float. This gives the numbers of such an engine,
up to the order of summation, so μ differs from π for the same reason as in production. Coarser formats exist for
studies of larger differences: activations in e5m2, or weights of four bits in groups of 32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError
from steadyrl.model.decoding import E4M3_MAX
from steadyrl.routing import is_experts

E5M2_MAX = 57344.0
GROUP = 32
"""Weights of four bits that share a scale."""
ROUTER_NAMES = {"gate", "router", "shared_expert_gate"}
"""Last part of the name of linear layers that choose or weigh experts; kept in full precision."""


def round_e4m3(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x rounded to e4m3 with one scale, max|x|/448, for each slice along `dim`."""
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_(min=1e-12).div_(E4M3_MAX)
    return x.div(scale).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)


def round_e5m2(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x rounded to e5m2, two bits of mantissa, with one scale, max|x|/57344, for each slice along `dim`."""
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_(min=1e-12).div_(E5M2_MAX)
    return x.div(scale).to(torch.float8_e5m2).to(x.dtype).mul_(scale)


def round_int4(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x rounded to the integers from −7 to 7 times a scale, max|x|/7, for each group of 32 along `dim`."""
    return _by_group(x, dim, lambda group, most: group.mul(7.0 / most).round_().mul_(most / 7.0))


def round_fp4(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x in MXFP4 (OCP Microscaling, 2023): e2m1, ±{0, ½, 1, 1½, 2, 3, 4, 6}, times a power of two a group of 32.

    The power is that of the largest |x| of the group, less 2; then values above 6 become 6.
    """

    def grid(group: Tensor, most: Tensor) -> Tensor:
        scale = torch.exp2(most.log2().floor() - 2.0)
        size = (group.abs() / scale).clamp_(max=6.0)
        step = torch.exp2(size.clamp(min=1.0).log2().floor() - 1.0)  # ½ below 2, 1 below 4, 2 above
        return (size / step).round_().mul_(step).mul_(scale).copysign(group)  # to even, on a tie

    return _by_group(x, dim, grid)


def _by_group(x: Tensor, dim: int, rounded: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Round groups of 32 along `dim`, each told its largest size; the last group may be shorter."""
    along = x.movedim(dim, -1)
    parts = []
    for group in along.split(GROUP, dim=-1):
        most = group.abs().amax(dim=-1, keepdim=True)
        parts.append(rounded(group, most.clamp(min=1e-12)))
    return torch.cat(parts, dim=-1).movedim(-1, dim).contiguous()


Rounding = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    """How an emulated engine rounds, and what it calls that."""

    weights: Rounding
    """Weights of linear layers and experts, along the dimension that outputs sum over."""
    activations: Rounding
    """What enters them, along the last dimension."""
    says: tuple[str, str]
    """Both, for people."""


FORMATS = {
    "fp8": Format(round_e4m3, round_e4m3, ("fp8 (e4m3), emulated", "fp8 (e4m3), emulated")),
    "fp8_e5m2": Format(round_e4m3, round_e5m2, ("fp8 (e4m3), emulated", "fp8 (e5m2), emulated")),
    "int4": Format(round_int4, round_e4m3, ("int4 in groups of 32, emulated", "fp8 (e4m3), emulated")),
    "fp4": Format(round_fp4, round_e4m3, ("mxfp4, emulated", "fp8 (e4m3), emulated")),
}
"""The precisions that the embedded engine emulates, by the name that a recipe gives them."""


def quantised_weights(model: PreTrainedModel) -> dict[str, int]:
    """Name of each parameter that is quantised, and the dimension that its output channels sum over.

    Raises:
        EngineError: the model has experts whose layout is not known.
    """
    head = model.get_output_embeddings()
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and name.rsplit(".", 1)[-1] not in ROUTER_NAMES:
            found[f"{name}.weight"] = -1
        elif is_experts(module):
            if "is_transposed" not in vars(module):
                raise EngineError(
                    f'engine.precision: how {type(module).__name__} stores its experts is not known here; use "native"'
                )
            inputs = 1 if module.is_transposed else 2
            found |= {f"{name}.{p}": inputs for p, w in module.named_parameters(recurse=False) if w.ndim == 3}
    return found


def quantise_activations(model: PreTrainedModel, rounding: Rounding) -> None:
    """Round, from now on, what enters each linear layer and each expert, and what enters its second projection."""

    def round_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounding(args[0]), *args[1:])

    linears = {name.removesuffix(".weight") for name in quantised_weights(model)}
    for name, module in model.named_modules():
        if is_experts(module):
            module.register_forward_pre_hook(round_input)
            _round_between(module, rounding)
        elif name in linears:
            module.register_forward_pre_hook(round_input)


def _round_between(experts: Any, rounding: Rounding) -> None:
    """Round the activations between an expert's two projections."""
    name = "_apply_gate" if experts.has_gate else "act_fn"
    activation = getattr(experts, name)
    experts.__dict__[name] = lambda projected: rounding(activation(projected))
