"""Routing Replay: run a mixture-of-experts model with the experts that were chosen elsewhere (arXiv 2512.01374, §2).

Only the discrete choice is replayed. The gate weights come from the live router's dense scores at the replayed
experts, by the family's own formula, so the router gets a gradient. All families share one call: inside a
mixture-of-experts block, the `topk` of [positions, experts] scores, or one `max` for each slot. Replay intercepts this
call. It replaces the indices and gathers the values at the new indices; then the family's code continues. Some routers
mask scores just before the choice, for example to limit it to groups. Then the values are gathered from the scores
before the mask, so a replayed expert outside the live groups has the weight that it would have inside. A forward must
choose every slot of a block exactly once; a block that chooses in another way is rejected.

Routes are passed as tensors. Nothing is kept in modules, classes or the process: the hooks are removed when the context
ends. The hooks are on the model's blocks, so only one thread may use a model while a context is open on it. Other
models are not changed.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from steadyrl.routing.blocks import blocks_of, is_experts, moe_blocks, route_dtype
from steadyrl.routing.check import check_ids, check_shape
from steadyrl.routing.guard import Open, RoutingError, opened
from steadyrl.types import Routes

CHOICES = frozenset({torch.topk, Tensor.topk, torch.max, Tensor.max})
MASKS = frozenset({torch.masked_fill, Tensor.masked_fill})
WATCHED = CHOICES | MASKS
NATIVE = -1
"""The sentinel in routes of int64."""


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
    with _intercepted(model, moe_blocks(model), None, margins=margins) as recorder:
        yield recorder


@contextmanager
def replay(
    model: PreTrainedModel, routes: Routes, *, margins: bool = False, checked: bool = False
) -> Iterator[Recorder]:
    """Run every forward (and recomputation) inside the context with `routes`, and watch what the routers preferred.

    The backward pass belongs inside the context: recomputed activations run the blocks once more.

    Args:
        model: a mixture-of-experts model of transformers.
        routes: [*positions, layers, slots]; leading dimensions are those of `input_ids`. Sentinel rows are routed
            natively.
        margins: as in `record`.
        checked: `check_routes` has passed these routes, or `record` gave them, so their ids are not checked again.
            The check reads every id and waits for the device.

    Raises:
        RoutingError: on entry, the model is dense, already replays routes, or has a context open in another thread.
            Or the routes have another number of layers or slots, another type, an expert out of range, or an expert
            twice in a row. In a forward, the number of positions or the thread differs. On exit, a reentrant
            checkpoint has not yet recomputed a block in its backward pass.
    """
    blocks = blocks_of(model)
    check_shape(routes, blocks)
    if not checked:
        check_ids(routes, blocks)
    ids = routes.reshape(-1, *routes.shape[-2:]).long()
    chosen = ids.where(ids != torch.iinfo(routes.dtype).max, NATIVE)
    with _intercepted(model, blocks, chosen, margins=margins) as recorder:
        yield recorder


@contextmanager
def _intercepted(
    model: PreTrainedModel, blocks: list[tuple[nn.Module, int]], routes: Tensor | None, *, margins: bool
) -> Iterator[Recorder]:
    recorder = Recorder(type(model).__name__, blocks, margins=margins)
    with ExitStack() as wrapped:
        first = blocks[0][0] if blocks else None
        held = wrapped.enter_context(opened(recorder.model, first, replaying=routes is not None))
        for layer, (block, experts) in enumerate(blocks):
            choice = None if routes is None else routes[:, layer]
            begin = partial(_begun, held, recorder, layer, experts, choice)
            wrapped.enter_context(_forward_within(block, begin))
            for child in filter(is_experts, block.children()):  # nothing is chosen there: spare it the interception
                wrapped.enter_context(_forward_within(child, torch._C.DisableTorchFunction))
        yield recorder
        held.refuse_unfinished()


def _begun(held: Open, recorder: Recorder, layer: int, experts: int, choice: Tensor | None) -> "_Choice":
    """Around one forward of one block."""
    held.refuse_other_threads()
    if choice is not None and not torch.is_inference_mode_enabled():
        held.note_checkpoints()
    return _Choice(layer, experts, recorder, choice)


@contextmanager
def _forward_within(module: nn.Module, make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Until the end of the context, run the module's forward inside another context."""
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

    def __init__(self, layer: int, experts: int, recorder: Recorder, choice: Tensor | None):
        super().__init__()
        self.layer, self.experts, self.recorder, self.choice = layer, experts, recorder, choice
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
        """The choice to replay for the slots that were just chosen; the native one at `NATIVE` rows."""
        choice, seen = self.choice, sum(part.shape[1] for part in self.native)
        assert choice is not None
        if len(choice) != len(native) or seen > choice.shape[1]:
            raise RoutingError(
                f"layer {self.layer}: routes are {tuple(choice.shape)} (positions, slots), "
                f"the forward needs {(len(native), seen)}"
            )
        indices = choice[:, seen - native.shape[1] : seen]
        return torch.where(indices == NATIVE, native, indices)

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
