"""Low-precision inference, emulated: what real FP8 engines quantise, this quantises.

W8A8 as vLLM and SGLang run it: weights of linear layers and experts have one scale per output channel, activations
one per token, both rounded to e4m3 and multiplied in higher precision. Router, norms, embeddings and output
projection keep theirs. Rounding and scaling back in float gives the numbers of such an engine up to the order of
summation, so that μ differs from π for the reason it differs in production.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from steadyrl.engine.base import EngineError
from steadyrl.model.decoding import E4M3_MAX
from steadyrl.model.routing import is_experts

ROUTER_NAMES = {"gate", "router", "shared_expert_gate"}
"""Last part of the name of linear layers that choose or weigh experts; kept in full precision."""


def round_e4m3(x: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """x rounded to e4m3 with one scale, max|x|/448, for each slice along `dim`."""
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_(min=1e-12).div_(E4M3_MAX)
    return x.div(scale).to(torch.float8_e4m3fn).to(x.dtype).mul_(scale)


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
                    f"engine.precision = 'fp8': how {type(module).__name__} stores its experts is not known here; "
                    "use precision = 'native'"
                )
            inputs = 1 if module.is_transposed else 2
            found |= {f"{name}.{p}": inputs for p, w in module.named_parameters(recurse=False) if w.ndim == 3}
    return found


def quantise_activations(model: PreTrainedModel) -> None:
    """Round, from now on, what enters each linear layer and each expert, and what enters its second projection."""
    linears = {name.removesuffix(".weight") for name in quantised_weights(model)}
    for name, module in model.named_modules():
        if is_experts(module):
            module.register_forward_pre_hook(_round_input)
            _round_between(module)
        elif name in linears:
            module.register_forward_pre_hook(_round_input)


def _round_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (round_e4m3(args[0]), *args[1:])


def _round_between(experts: Any) -> None:
    """Round the activations between an expert's two projections."""
    name = "_apply_gate" if experts.has_gate else "act_fn"
    activation = getattr(experts, name)
    experts.__dict__[name] = lambda projected: round_e4m3(activation(projected))
