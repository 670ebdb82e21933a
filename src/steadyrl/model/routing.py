"""Routing Replay: run a mixture-of-experts model with the experts that were chosen elsewhere (arXiv 2512.01374, §2).

Only the discrete choice is replayed. The gate weights come from the live router's dense scores at the replayed
experts, by the family's own formula, so gradient reaches the router. This holds for any family because the one thing
they share is intercepted: inside a mixture-of-experts block, the `topk` of [positions, experts] scores, or one `max`
for each slot. Its indices are replaced, its values are gathered at the new indices, and the family's code goes on
from there. Where scores were masked just before the choice, as by a router limited to groups, the values are gathered
from the scores before the mask: a replayed expert outside the live groups then has the weight it would have inside.
Every slot of a block must be chosen exactly once in a forward; a block that chooses in another way is refused.

Routes are tensors handed in and out. Nothing is kept in modules, classes or the process: the hooks live as long as
the context. The hooks are on the model's blocks, so a model belongs to one thread while a context is open on it; other
models are not touched.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from steadyrl.model.route_guard import Open, RoutingError, opened
from steadyrl.types import Routes

__all__ = [
    "Recorder",
    "RoutingError",
    "check_ids",
    "check_recording",
    "check_replay",
    "check_routes",
    "check_shape",
    "is_experts",
    "is_moe",
    "moe_blocks",
    "record",
    "replay",
    "route_dtype",
    "slots_of",
]

CHOICES = frozenset({torch.topk, Tensor.topk, torch.max, Tensor.max})
MASKS = frozenset({torch.masked_fill, Tensor.masked_fill})
WATCHED = CHOICES | MASKS


def route_dtype(experts: int) -> torch.dtype:
    """The smallest unsigned type that holds every expert id and, above them, the sentinel."""
    return torch.uint8 if experts < 256 else torch.uint16


@cache
def _takes_a_choice(kind: type[nn.Module]) -> bool:
    """Whether modules of this class are handed the chosen experts and their gate weights."""
    return hasattr(kind, "_apply_gate") or "top_k_index" in inspect.signature(kind.forward).parameters


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds the experts of a block.

    transformers marks its classes with a gating function. Unmarked ones are handed the choice as `top_k_index`, or
    hold all weights stacked and are fed every position once for every expert, scaled by a gate that is mostly 0.
    """
    return _takes_a_choice(type(module)) or (
        "num_experts" in vars(module)
        and sum(p.ndim == 3 and p.shape[0] == module.num_experts for p in module.parameters(recurse=False)) > 1
    )


def moe_blocks(model: nn.Module) -> list[tuple[nn.Module, int]]:
    """Mixture-of-experts blocks in layer order, each with its number of experts.

    A block is the parent of experts; adapters may stand between the two (`experts.base_layer`).
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


class Recorder:
    """The experts that each block's own router chose, in the forwards since the context was entered."""

    def __init__(self, model: str, blocks: list[tuple[nn.Module, int]], *, margins: bool = False):
        self.model = model
        self._chosen: list[Tensor | None] = [None] * len(blocks)
        self._margins: dict[int, Tensor] | None = {} if margins else None
        self._kinds = [type(block).__name__ for block, _ in blocks]
        self._dtype = route_dtype(max((experts for _, experts in blocks), default=0))

    def routes(self) -> Routes:
        """Choices of the latest forward, as [positions, layers, slots], positions in row-major order.

        Under `replay` this is what the live router *would* have chosen, given the replayed layers below it.

        Raises:
            RoutingError: a block has not run, or has made no choice that was seen.
        """
        chosen = [layer for layer in self._chosen if layer is not None]
        if len(chosen) != len(self._chosen):
            blind = [i for i, layer in enumerate(self._chosen) if layer is None]
            kinds = ", ".join(sorted({self._kinds[i] for i in blind}))
            raise RoutingError(
                f"{self.model}: no expert choice was seen in mixture-of-experts layer(s) {blind} ({kinds}): "
                "they have not run, or choose in a way that replay does not know"
            )
        return torch.stack(chosen, dim=1).to(self._dtype)

    def margins(self) -> Float[Tensor, "positions layers"]:
        """How near to a tie each choice was: the k-th score less the k+1-th, in the units that the family chooses by.

        Infinite where a layer chooses all its experts. Only of a context that was entered with `margins`.
        """
        assert self._margins is not None
        return torch.stack([self._margins[layer] for layer in range(len(self._chosen))], dim=1)

    def keep(self, layer: int, indices: Tensor) -> None:
        """Remember a block's choice, [positions, slots]; a recomputed forward overwrites it with the same."""
        self._chosen[layer] = indices.detach()

    def look(self, layer: int, scores: Tensor, best: Tensor, indices: Tensor) -> None:
        """Remember, if margins were asked for, how near the choice of the `best` scores was to a tie."""
        if self._margins is not None:
            # a maximum over the others: much cheaper than a second topk; of no others it is −∞
            others = scores.detach().scatter(-1, indices, -torch.inf).amax(dim=-1)
            self._margins[layer] = best.detach().amin(dim=-1).float() - others.float()


@contextmanager
def record(model: PreTrainedModel, *, margins: bool = False) -> Iterator[Recorder]:
    """Watch the routers while the context is open; the forward itself is unchanged.

    Args:
        model: any model of transformers.
        margins: also keep how near each choice was to a tie.

    Raises:
        RoutingError: another thread has a context open on this model.
    """
    with _intercepted(model, moe_blocks(model), None, None, margins=margins) as recorder:
        yield recorder


@contextmanager
def replay(model: PreTrainedModel, routes: Routes, *, margins: bool = False) -> Iterator[Recorder]:
    """Run every forward (and recomputation) inside the context with `routes`, and watch what the routers preferred.

    The backward pass belongs inside the context: recomputed activations run the blocks once more.

    Args:
        model: a mixture-of-experts model of transformers.
        routes: [*positions, layers, slots]; leading dimensions are those of `input_ids`. Sentinel rows are routed
            natively.
        margins: as in `record`.

    Raises:
        RoutingError: on entry, the model is dense, or the routes have another number of layers or slots, another
            type, an expert out of range or twice in a row, routes are being replayed already, or another thread has a
            context open on this model; at a block's forward, another number of positions, or another thread; on
            leaving, a reentrant checkpoint has yet to recompute a block in its backward pass.
    """
    blocks = _blocks_of(model)
    check_shape(routes, blocks)
    sentinel = torch.iinfo(routes.dtype).max if check_ids(routes, blocks) else None
    chosen = routes.reshape(-1, *routes.shape[-2:]).long()
    with _intercepted(model, blocks, chosen, sentinel, margins=margins) as recorder:
        yield recorder


def _blocks_of(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The blocks of a model that must have some."""
    blocks = moe_blocks(model)
    if blocks:
        return blocks
    config = model.config.get_text_config().to_dict()
    named = {k: v for k, v in config.items() if "expert" in k and isinstance(v, int) and v > 1}
    if named:
        raise RoutingError(f"{type(model).__name__} has experts ({named}) in modules of a kind that is not known here")
    raise RoutingError(f"{type(model).__name__} is dense: it has no routes to replay")


def check_routes(model: PreTrainedModel, routes: Routes) -> None:
    """Hold routes against a model: their type, layers and slots, and the experts of each row.

    Raises:
        RoutingError: they are not this model's, or a row is neither distinct experts nor the sentinel alone.
    """
    blocks = _blocks_of(model)
    check_shape(routes, blocks)
    check_ids(routes, blocks)


def check_shape(routes: Routes, blocks: list[tuple[nn.Module, int]]) -> None:
    """Check the type, the layers and the slots of routes, without a look at their values.

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


def check_ids(routes: Routes, blocks: list[tuple[nn.Module, int]]) -> bool:
    """Every row holds distinct experts of its layer, or nothing but the sentinel. Whether any row is the sentinel's.

    Slot by slot: reductions over a handful of slots would take longer than the replay itself.
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
    seen = torch.stack([absent[0].any(), *(fault.any() for fault in faults.values())]).tolist()  # one wait
    for (what, fault), found in zip(faults.items(), seen[1:], strict=True):
        if found:
            position, layer = fault.nonzero()[0].tolist()
            raise RoutingError(
                f"routes at position {position}, layer {layer} are {flat[position, layer].tolist()}: {what}; the layer "
                f"has {blocks[layer][1]} experts, the sentinel is {torch.iinfo(routes.dtype).max}"
            )
    return seen[0]


@torch.no_grad()
def check_recording(model: PreTrainedModel) -> Routes:
    """Record a forward of a few positions, and return the routes.

    Raises:
        RoutingError: the model is dense, or a block's choice is not seen, or is seen for some slots only.
    """
    _blocks_of(model)
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
    """Hold a model against what replay rests on, in two forwards of a few positions.

    Raises:
        RoutingError: the model is dense; a block's choice is not seen, or is seen for some slots only; a replayed
            expert gets no gate weight, and so would get no gradient; or the only gate weight of a position is the
            same everywhere, so that the router would get no gradient.
    """
    name, blocks = type(model).__name__, _blocks_of(model)
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
        if _takes_a_choice(type(module)):
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


@contextmanager
def _intercepted(
    model: PreTrainedModel,
    blocks: list[tuple[nn.Module, int]],
    routes: Tensor | None,
    sentinel: int | None,
    *,
    margins: bool,
) -> Iterator[Recorder]:
    recorder = Recorder(type(model).__name__, blocks, margins=margins)
    with ExitStack() as wrapped:
        first = blocks[0][0] if blocks else None
        held = wrapped.enter_context(opened(recorder.model, first, replaying=routes is not None))
        for layer, (block, experts) in enumerate(blocks):
            choice = None if routes is None else routes[:, layer]
            begin = partial(_begun, held, recorder, layer, experts, choice, sentinel)
            wrapped.enter_context(_forward_within(block, begin))
            for child in filter(is_experts, block.children()):  # nothing is chosen there: spare it the interception
                wrapped.enter_context(_forward_within(child, torch._C.DisableTorchFunction))
        yield recorder
        held.refuse_unfinished()


def _begun(
    held: Open,
    recorder: Recorder,
    layer: int,
    experts: int,
    choice: Tensor | None,
    sentinel: int | None,
) -> "_Choice":
    """Around one forward of one block."""
    held.refuse_other_threads()
    if choice is not None and not torch.is_inference_mode_enabled():
        held.note_checkpoints()
    return _Choice(layer, experts, recorder, choice, sentinel)


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
    """Around one forward of one block: record the choice among all experts, and replace it where one is to replay."""

    def __init__(self, layer: int, experts: int, recorder: Recorder, choice: Tensor | None, sentinel: int | None):
        super().__init__()
        self.layer, self.experts, self.recorder, self.choice = layer, experts, recorder, choice
        self.sentinel = sentinel  # None: no position is to be routed natively
        self.native: list[Tensor] = []  # one choice of all slots, or one for each
        self.masked: Tensor | None = None
        self.unmasked: Tensor | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in WATCHED:
            return out
        scores = args[0] if args else (kwargs or {})["input"]
        if scores.ndim != 2 or scores.shape[-1] != self.experts:
            return out  # a choice among groups, not among experts
        if func in MASKS:
            self.masked, self.unmasked = out, scores
            return out
        if isinstance(out, Tensor) or out[1].ndim != 2 or out[1].shape[0] != scores.shape[0]:
            return out  # a maximum over everything, or of each expert over positions: no choice for each position
        self.native.append(out[1])
        self.recorder.look(self.layer, scores, *out)  # of one choice per slot, the last one stays
        if self.choice is None:
            return out
        indices = self._replayed(out[1])
        dense = cast(Tensor, self.unmasked) if scores is self.masked else scores
        return type(out)((dense.gather(-1, indices), indices))

    def _replayed(self, native: Tensor) -> Tensor:
        """The choice to replay for the slots that were just chosen; the native one at sentinel rows."""
        choice, seen = self.choice, sum(part.shape[1] for part in self.native)
        assert choice is not None
        if len(choice) != len(native) or seen > choice.shape[1]:
            raise RoutingError(
                f"layer {self.layer}: routes are {tuple(choice.shape)} (positions, slots), "
                f"the forward needs {(len(native), seen)}"
            )
        indices = choice[:, seen - native.shape[1] : seen]
        return indices if self.sentinel is None else torch.where(indices == self.sentinel, native, indices)

    def __exit__(self, kind, error, trace):
        super().__exit__(kind, error, trace)
        if kind is not None:
            return
        seen = sum(part.shape[1] for part in self.native)
        if self.choice is not None and seen != self.choice.shape[1]:
            raise RoutingError(
                f"layer {self.layer}: routes have {self.choice.shape[1]} slots, but a choice of {seen} experts was seen"
            )
        if self.native:
            self.recorder.keep(self.layer, torch.cat(self.native, dim=1) if len(self.native) > 1 else self.native[0])
