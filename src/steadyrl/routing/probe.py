"""Whether a model can be recorded and replayed, tried on a few positions before a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from steadyrl.routing.blocks import blocks_of, is_experts, takes_a_choice
from steadyrl.routing.guard import RoutingError
from steadyrl.routing.hooks import record, replay
from steadyrl.types import Routes


@torch.no_grad()
def check_recording(model: PreTrainedModel) -> Routes:
    """Record a forward of a few positions, and return the routes.

    Raises:
        RoutingError: the model is dense, or a block's choice is not seen, or is seen for some slots only.
    """
    blocks_of(model)
    with record(model) as recorder:
        model.base_model(input_ids=_probe(model), use_cache=False)
        return recorder.routes()


def _probe(model: PreTrainedModel) -> Int[Tensor, "1 positions"]:
    """Sixteen tokens, or as many as there are, without the one that pads: it is often embedded as zeros."""
    config = model.config.get_text_config()
    ids = [token for token in range(min(17, config.vocab_size)) if token != config.pad_token_id]
    return torch.tensor([ids[:16]], device=model.device)


@torch.no_grad()
def check_replay(model: PreTrainedModel) -> None:
    """Check that replay works for a model, in two forwards of a few positions.

    Raises:
        RoutingError: the model is dense. Or the choice of a block is not seen, or only for some slots. Or a replayed
            expert gets no gate weight, so it would get no gradient. Or a position has one gate weight that never
            varies, so the router would get no gradient.
    """
    name, blocks = type(model).__name__, blocks_of(model)
    ids, natural = _probe(model), check_recording(model)
    counts = torch.tensor([count for _, count in blocks], device=model.device)[:, None]
    positions = torch.arange(len(natural), device=model.device)[:, None, None]
    foreign = ((natural.int() + positions) % counts).to(natural.dtype)  # shifted alike: the slots stay distinct
    with _gate_weights(model, foreign) as weights, replay(model, foreign):
        model.base_model(input_ids=ids, use_cache=False)
    for layer, gates in enumerate(weights):
        where = f"{name}, mixture-of-experts layer {layer}"
        if bool((gates == 0).any()):
            raise RoutingError(
                f"{where}: a replayed expert gets no gate weight, because the router masks its scores before it "
                "chooses; it would get no gradient either. Replay is refused"
            )
        if gates.shape[-1] == 1 and bool((gates == gates[0]).all()):
            raise RoutingError(
                f"{where}: it chooses one expert and renormalises, so the gate weight is {float(gates[0]):.3g} "
                "whatever the router says, and the router gets no gradient. Replay is refused"
            )


@contextmanager
def _gate_weights(model: PreTrainedModel, routes: Routes) -> Iterator[list[Tensor]]:
    """What the experts modules are handed as gate weights, one [positions, slots] a layer, in forward order."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if takes_a_choice(type(module)):
            seen.append(args[2] if len(args) > 2 else kwargs["top_k_weights"])
        else:  # fed every position for every expert: the weight shows as the size of what it scaled
            sizes = args[0].view(module.num_experts, -1, args[0].shape[-1]).norm(dim=-1)
            seen.append(sizes.T.gather(-1, routes[:, len(seen)].long()))

    hooks = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in model.modules() if is_experts(m)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
