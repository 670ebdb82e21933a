"""Routing Replay: run a mixture-of-experts model with the experts that were chosen elsewhere (arXiv 2512.01374, §2).

Only the discrete choice is replayed. The gate weights come from the live router's dense scores at the replayed
experts, by the family's own formula, so gradient reaches the router. This holds for any family because the one thing
they share is intercepted: the `torch.topk` of [positions, experts] scores inside a mixture-of-experts block. Its
indices are replaced, its values are gathered at the new indices, and the family's code goes on from there. Families
that choose in another way, or mask scores before they choose, are refused by `check_replay`.

Routes are tensors handed in and out. Nothing is kept in modules, classes or the process: the hooks live as long as
the context, and the interception is local to the thread that runs the block.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.return_types import topk as TopK
from transformers import PreTrainedModel

from steadyrl.errors import UserError
from steadyrl.types import Routes


class RoutingError(UserError):
    """Routes that do not fit the model. The message names the field and the sizes."""


def route_dtype(experts: int) -> torch.dtype:
    """The smallest unsigned type that holds every expert id and, above them, the sentinel."""
    return torch.uint8 if experts < 256 else torch.uint16


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a block: transformers marks its classes with a gating function."""
    return hasattr(type(module), "_apply_gate")


def moe_blocks(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Mixture-of-experts blocks in layer order, each with its number of experts; a block is the parent of experts."""
    return [
        (block, cast(int, child.num_experts))
        for block in model.modules()
        for child in block.children()
        if is_experts(child)
    ]


def is_moe(model: nn.Module) -> bool:
    """Whether the model has a mixture-of-experts block."""
    return bool(moe_blocks(model))


class Recorder:
    """The experts that each block's own router chose, in the forwards since the context was entered."""

    def __init__(self, layers: int, experts: int):
        self._chosen: list[Tensor | None] = [None] * layers
        self._dtype = route_dtype(experts)

    def routes(self) -> Routes:
        """Choices of the latest forward, as [positions, layers, slots], positions in row-major order.

        Under `replay` this is what the live router *would* have chosen, given the replayed layers below it.

        Raises:
            RoutingError: a block has not run, or has made no choice that was seen.
        """
        chosen = [layer for layer in self._chosen if layer is not None]
        if len(chosen) != len(self._chosen):
            blind = [i for i, layer in enumerate(self._chosen) if layer is None]
            raise RoutingError(f"no expert choice was seen in mixture-of-experts layer(s) {blind}; run a forward first")
        return torch.stack(chosen, dim=1).to(self._dtype)

    def keep(self, layer: int, indices: Tensor) -> None:
        """Remember a block's choice, [positions, slots]; a recomputed forward overwrites it with the same."""
        self._chosen[layer] = indices.detach()


@contextmanager
def record(model: PreTrainedModel) -> Iterator[Recorder]:
    """Watch the routers while the context is open; the forward itself is unchanged."""
    with _intercepted(model, None) as recorder:
        yield recorder


@contextmanager
def replay(model: PreTrainedModel, routes: Routes) -> Iterator[Recorder]:
    """Run every forward (and recomputation) inside the context with `routes`, and watch what the routers preferred.

    Args:
        model: a mixture-of-experts model of transformers.
        routes: [*positions, layers, slots]; leading dimensions are those of `input_ids`. Sentinel rows are routed
            natively.

    Raises:
        RoutingError: the model is dense, or the routes have another number of layers or type.
    """
    blocks = moe_blocks(model)
    if not blocks:
        raise RoutingError(f"{type(model).__name__} is dense: it has no routes to replay")
    layers, expected = len(blocks), route_dtype(max(experts for _, experts in blocks))
    if routes.shape[-2] != layers:
        raise RoutingError(f"routes have {routes.shape[-2]} layers, the model has {layers} mixture-of-experts layers")
    if routes.dtype != expected:
        raise RoutingError(f"routes are {routes.dtype}, this model's are {expected}")
    flat = routes.reshape(-1, *routes.shape[-2:])
    with _intercepted(model, flat) as recorder:
        yield recorder


@torch.no_grad()
def check_replay(model: PreTrainedModel) -> None:
    """Hold a model against what replay rests on, in two forwards of a few positions.

    Raises:
        RoutingError: the model is dense; a block's choice is not seen; or a replayed expert gets no gate weight, as
            where scores are masked before the choice (some group-limited routers), and so would get no gradient.
    """
    name = type(model).__name__
    blocks = moe_blocks(model)
    if not blocks:
        raise RoutingError(f"{name} is dense: it has no experts to replay")
    ids = torch.arange(16, device=model.device)[None] % model.config.get_text_config().vocab_size
    with record(model) as recorder:
        model.base_model(input_ids=ids, use_cache=False)
        natural = recorder.routes()
    counts = torch.tensor([count for _, count in blocks], device=model.device)[:, None]
    positions = torch.arange(len(natural), device=model.device)[:, None, None]
    foreign = ((natural.int() + positions) % counts).to(natural.dtype)  # shifted alike: the slots stay distinct
    with _gate_weights(model) as weights, replay(model, foreign):
        model.base_model(input_ids=ids, use_cache=False)
    for layer, gates in enumerate(weights):
        if bool((gates == 0).any()):
            raise RoutingError(
                f"{name}, mixture-of-experts layer {layer}: a replayed expert gets no gate weight, because the router "
                "masks its scores before it chooses; it would get no gradient either. Replay is refused"
            )


@contextmanager
def _gate_weights(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the experts modules are handed as gate weights, one [positions, slots] a layer, in forward order."""
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[2] if len(args) > 2 else kwargs["top_k_weights"])

    hooks = [m.register_forward_pre_hook(watch, with_kwargs=True) for m in model.modules() if is_experts(m)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _intercepted(model: PreTrainedModel, routes: Routes | None) -> Iterator[Recorder]:
    blocks = moe_blocks(model)
    recorder = Recorder(len(blocks), max((experts for _, experts in blocks), default=0))
    with ExitStack() as wrapped:
        for layer, (block, experts) in enumerate(blocks):
            choice = None if routes is None else routes[:, layer]
            mode = _Choice(layer, experts, recorder, choice)
            wrapped.enter_context(_forward_within(block, lambda mode=mode: mode))
            for child in filter(is_experts, block.children()):  # nothing is chosen there: spare it the interception
                wrapped.enter_context(_forward_within(child, torch._C.DisableTorchFunction))
        yield recorder


@contextmanager
def _forward_within(module: nn.Module, make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Until the end of the context, run the module's forward inside a context of its own."""
    forward, own = module.forward, "forward" in module.__dict__

    def intercepted(*args: Any, **kwargs: Any) -> Any:
        with make():
            return forward(*args, **kwargs)

    module.forward = intercepted
    try:
        yield
    finally:
        if own:
            module.forward = forward
        else:
            del module.__dict__["forward"]


class _Choice(TorchFunctionMode):
    """Inside one block: record the choice among all experts, and replace it where there is one to replay."""

    def __init__(self, layer: int, experts: int, recorder: Recorder, choice: Tensor | None):
        super().__init__()
        self.layer, self.experts, self.recorder, self.choice = layer, experts, recorder, choice

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not torch.topk and func is not Tensor.topk:
            return out
        scores = args[0] if args else (kwargs or {})["input"]
        if scores.ndim != 2 or scores.shape[-1] != self.experts:
            return out  # a choice among groups, not among experts
        native = out[1]
        self.recorder.keep(self.layer, native)
        if self.choice is None:
            return out
        indices = self._replayed(native)
        return TopK((scores.gather(-1, indices), indices))

    def _replayed(self, native: Tensor) -> Tensor:
        """The choice to replay, as indices; the native one at sentinel rows."""
        choice = self.choice
        assert choice is not None
        if choice.shape != native.shape:
            raise RoutingError(
                f"layer {self.layer}: routes are {tuple(choice.shape)} (positions, slots), "
                f"the forward needs {tuple(native.shape)}"
            )
        indices = choice.to(native.dtype)
        return torch.where(indices == torch.iinfo(choice.dtype).max, native, indices)
