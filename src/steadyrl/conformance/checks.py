"""What Routing Replay promises, as checks that any mixture-of-experts model can be held against.

Each check builds small models and raises `CheckFailed` where a promise is broken. They use transformers' own forward:
what is checked is replay, not the rest of this library.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from steadyrl.conformance.families import Gate, build
from steadyrl.conformance.gates import Handed, dense, gate_weights, router_of, watched
from steadyrl.errors import UserError
from steadyrl.model.loading import RECURRENT
from steadyrl.model.routing import RoutingError, moe_blocks, record, replay
from steadyrl.types import Routes

IDS = torch.tensor([[3, 9, 20, 11, 5, 17, 26], [30, 8, 8, 14, 6, 41, 2]])


class CheckFailed(UserError):
    """A promise of replay that a model breaks."""


class NotApplicable(Exception):
    """The model lacks what the check is about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The model that is checked."""

    config: PreTrainedConfig
    """Small enough that a forward takes milliseconds."""
    gate: Gate | None
    """Its gate by formula; None where no formula is known."""
    many: PreTrainedConfig | None = None
    """The same model with more than 256 experts."""
    model: PreTrainedModel | None = None
    """A model with trained weights, where that is what is checked."""

    def build(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A model of its own for each check."""
        if self.model is None:
            return build(self.config, seed=seed, dtype=dtype)
        copy = type(self.model)(self.model.config).to(dtype).eval()
        copy.load_state_dict(self.model.state_dict())
        return copy


def require(held: bool | Tensor, otherwise: str) -> None:
    """Raise `CheckFailed` unless the promise was held."""
    if not bool(held):
        raise CheckFailed(otherwise)


def logits_of(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    """Logits, without a gradient."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def gradients_of(model: PreTrainedModel, ids: Tensor = IDS) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of the log-probability of one token summed over all positions."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.float().log_softmax(dim=-1)[..., 4].sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def recorded(model: PreTrainedModel, ids: Tensor = IDS) -> Routes:
    """The model's own routes."""
    with record(model) as recorder:
        logits_of(model, ids)
        return recorder.routes()


def foreign(model: PreTrainedModel, ids: Tensor = IDS) -> Routes:
    """Valid routes that the model would not choose, different at each position and in each layer."""
    routes = recorded(model, ids)
    counts = torch.tensor([experts for _, experts in moe_blocks(model)])[:, None]
    positions, layers = torch.arange(len(routes))[:, None, None], torch.arange(len(counts))[:, None]
    return ((routes.int() + 1 + positions + 2 * layers) % counts).to(routes.dtype)


def same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]], what: str) -> None:
    """Logits and every gradient agree to the last bit."""
    require(torch.equal(one[0], other[0]), f"{what}: logits differ by {(one[0] - other[0]).abs().max():.3g}")
    require(one[1].keys() == other[1].keys(), f"{what}: other parameters have a gradient")
    differing = [name for name in one[1] if not torch.equal(one[1][name], other[1][name])]
    require(not differing, f"{what}: gradients differ in {differing[:3]}")


def own_routes(subject: Subject, dtype: torch.dtype = torch.float32) -> None:
    """Replaying the recorded routes changes no bit of logits and gradients."""
    model = subject.build(dtype=dtype)
    with record(model) as recorder:
        native = gradients_of(model)
    routes = recorder.routes()
    same(gradients_of(model), native, "two forwards without replay")
    with replay(model, routes) as watched_again:
        same(gradients_of(model), native, "replay of the recorded routes")
    require(torch.equal(watched_again.routes(), routes), "under replay of the recorded routes the router prefers others")


def handed_the_routes(seen: list[Handed], routes: Routes) -> None:
    """Each block's experts received exactly the routes."""
    require(len(seen) == routes.shape[1], f"{len(seen)} experts modules ran for {routes.shape[1]} layers of routes")
    for layer, handed in enumerate(seen):
        chosen = dense(torch.ones(routes[:, layer].shape), routes[:, layer], handed.weights.shape[1])
        wrong = ((handed.weights != 0) != (chosen != 0)).any(dim=1)
        require(not wrong.any(), f"layer {layer}: other experts than the routes at positions {wrong.nonzero()[:, 0].tolist()}")


def foreign_routes(subject: Subject, dtype: torch.dtype = torch.float32, model: PreTrainedModel | None = None) -> None:
    """Under foreign routes the experts receive exactly those, weighted by the family's formula."""
    model = subject.build(dtype=dtype) if model is None else model
    routes = foreign(model)
    with replay(model, routes), watched(model) as seen:
        changed = logits_of(model)
    handed_the_routes(seen, routes)
    require(not torch.allclose(changed, logits_of(model), atol=1e-3), "foreign routes leave the logits as they were")
    if subject.gate is None:
        return
    for layer, handed in enumerate(seen):
        chosen = routes[:, layer].long()
        weights = gate_weights(subject.gate, handed.logits, chosen, model.config.get_text_config())
        expected = dense(weights, chosen, handed.weights.shape[1])
        far = (handed.weights - expected).abs().max() / expected.abs().max()
        require(far < (1e-4 if dtype == torch.float32 else 3e-2), f"layer {layer}: gate weights are off by {far:.3g}")


def bfloat16(subject: Subject) -> None:
    """The same holds in BF16: own routes change no bit, foreign routes arrive with their weights."""
    own_routes(subject, torch.bfloat16)
    foreign_routes(subject, torch.bfloat16)


def experts_kernels(subject: Subject) -> None:
    """Every implementation of the experts keeps own routes to the bit, and agrees on foreign ones to rounding."""
    model = subject.build()
    if not model._can_set_experts_implementation():
        raise NotApplicable
    model.set_experts_implementation("eager")
    routes = foreign(model)
    with replay(model, routes):
        expected = logits_of(model)
    for kernel in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(kernel)
        with record(model) as recorder:
            native = gradients_of(model)
        with replay(model, recorder.routes()):
            same(gradients_of(model), native, f"{kernel}: replay of the recorded routes")
        with replay(model, routes):
            far = (logits_of(model) - expected).abs().max()
        require(far < 1e-3, f"{kernel}: logits differ from eager's by {far:.3g} under the same routes")
        foreign_routes(subject, model=model)


def order_in_a_row(subject: Subject) -> None:
    """The order of the experts within a row does not matter, beyond rounding."""
    model = subject.build()
    routes = recorded(model)
    if routes.shape[-1] == 1 or (subject.gate is not None and subject.gate.score == "sparsemixer"):
        raise NotApplicable  # one expert has no order; the slots of a sparse mixer have weights of their own
    with replay(model, routes.flip(-1)):
        far = (logits_of(model) - logits_of(model)).abs().max()
        flipped = logits_of(model)
    far = (flipped - logits_of(model)).abs().max()
    require(far < 1e-3, f"routes in another order within each row move the logits by {far:.3g}")


def router_gradient(subject: Subject) -> None:
    """Under foreign routes the router of every layer receives a gradient for every expert that was replayed."""
    model = subject.build()
    routes = foreign(model)
    with replay(model, routes):
        gradients_of(model)
    for layer, (block, experts) in enumerate(moe_blocks(model)):
        gradient = router_of(block, experts)[1].weight.grad
        require(gradient is not None, f"layer {layer}: the router's weight has no gradient")
        assert gradient is not None
        replayed = routes[:, layer].long().unique()
        without = [int(e) for e in replayed if not gradient[e].any()]
        require(not without, f"layer {layer}: the router has no gradient for the replayed experts {without}")
        require(gradient.abs().max() > 1e-6, f"layer {layer}: the router's gradient vanishes")


def sentinel_rows(subject: Subject) -> None:
    """Rows that hold the sentinel are routed natively, the others by the routes."""
    model = subject.build()
    routes = foreign(model)
    sentinel = torch.iinfo(routes.dtype).max
    routes[::3] = sentinel
    with replay(model, routes) as preferred, watched(model) as seen:
        logits_of(model)
    expected = torch.where(routes.int() == sentinel, preferred.routes().int(), routes.int()).to(routes.dtype)
    handed_the_routes(seen, expected)
    with replay(model, torch.full_like(routes, sentinel)):
        nothing = logits_of(model)
    require(torch.equal(nothing, logits_of(model)), "routes of nothing but the sentinel change the logits")


def checkpointing(subject: Subject) -> None:
    """Recomputed activations give the same loss and gradients, and the experts receive the same rows once more."""
    model = subject.build()
    if not model.supports_gradient_checkpointing:
        raise NotApplicable
    routes = foreign(model)
    with replay(model, routes), watched(model) as once:
        straight = gradients_of(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True  # it alone: dropout and jitter stay off
    with replay(model, routes), watched(model) as twice:
        same(gradients_of(model), straight, "with activation checkpointing")
    layers = len(once)
    require(len(twice) == 2 * layers, f"{layers} blocks ran {len(twice)} times in a forward and its recomputation")
    handed_the_routes(once, routes)
    handed_the_routes(twice[:layers], routes)
    handed_the_routes(twice[layers:][::-1], routes)


def layouts(subject: Subject) -> None:
    """Packed, padded and split, every token keeps its own row of routes: the same log-probabilities to rounding."""
    model = subject.build()
    one, two = IDS[0, :4], IDS[1]
    parts = [(ids, foreign(model, ids[None])) for ids in (one, two)]
    alone = []
    for ids, routes in parts:
        with replay(model, routes):
            alone.append(logits_of(model, ids[None])[0].log_softmax(dim=-1))
    both = torch.cat([routes for _, routes in parts])
    gap = torch.full_like(both[: len(two) - len(one)], torch.iinfo(both.dtype).max)
    padded = torch.zeros(2, len(two), dtype=torch.long)
    padded[0, : len(one)], padded[1] = one, two
    with replay(model, torch.cat([both[: len(one)], gap, both[len(one) :]])):
        rows = logits_of(model, padded).log_softmax(dim=-1)
    close(rows[0, : len(one)], alone[0], "padded")
    close(rows[1], alone[1], "padded")
    if not packs(model.config):
        return
    positions = torch.cat([torch.arange(len(one)), torch.arange(len(two))])[None]
    with replay(model, both), torch.no_grad():
        row = model(input_ids=torch.cat([one, two])[None], position_ids=positions, use_cache=False).logits
    close(row[0].log_softmax(dim=-1), torch.cat(alone), "packed")


def packs(config: PreTrainedConfig) -> bool:
    """Whether several sequences can share a row: the state of a recurrent layer would leak into the next."""
    return not RECURRENT & set(getattr(config.get_text_config(), "layer_types", None) or ())


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Log-probabilities agree to rounding."""
    far = (one - other).abs().max()
    require(far < 1e-3, f"{what}: log-probabilities differ by {far:.3g} from those of each sequence alone")


def two_models(subject: Subject) -> None:
    """A policy and a reference in one process keep their routes apart, in turns and in two threads at once."""
    models = [subject.build(seed=0), subject.build(seed=1)]
    routes = [foreign(models[0]), recorded(models[1])]
    expected = []
    for model, rows in zip(models, routes, strict=True):
        with replay(model, rows), watched(model) as seen:
            expected.append(logits_of(model))
        handed_the_routes(seen, rows)
    together, strayed = threading.Barrier(2), []

    def work(which: int) -> None:
        with replay(models[which], routes[which]):
            for _ in range(3):
                together.wait()
                if not torch.equal(logits_of(models[which]), expected[which]):
                    strayed.append(which)

    with replay(models[0], routes[0]), replay(models[1], routes[1]):
        require(torch.equal(logits_of(models[0]), expected[0]), "a second model's replay changes the first's")
        require(torch.equal(logits_of(models[1]), expected[1]), "a first model's replay changes the second's")
    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    require(not strayed, "two threads mix their routes")


def many_experts(subject: Subject) -> None:
    """More than 256 experts: routes are 16 bits wide, and every id arrives."""
    if subject.many is None:
        raise NotApplicable
    model = build(subject.many)
    routes = foreign(model)
    require(routes.dtype == torch.uint16, f"routes of {subject.many.model_type} with many experts are {routes.dtype}")
    require(routes.int().max() > 255, "no expert beyond the 256th was replayed")
    with replay(model, routes), watched(model) as seen:
        logits_of(model)
    handed_the_routes(seen, routes)


def refusals(subject: Subject) -> None:
    """Routes that do not fit are refused before any forward; another number of positions by the first block."""
    model = subject.build()
    routes = recorded(model)
    experts = min(count for _, count in moe_blocks(model))
    ran: list[int] = []
    wrong = {
        "one layer fewer": routes[:, 1:],
        "one slot more": torch.cat([routes, routes[..., :1]], dim=-1),
        "another type": routes.to(torch.uint16),
        "an id out of range": routes.clone().fill_(experts),
        "an id twice": torch.cat([routes, routes], dim=-1)[..., : max(2, routes.shape[-1])].clone().fill_(1),
    }
    with embedding_counted(model, ran):
        for what, given in wrong.items():
            require(refuses(model, given), f"routes with {what} are taken")
            require(not ran, f"routes with {what} are refused only after a forward has begun")
    require(refuses(model, routes[1:]), "routes of one position fewer are taken")
    require(torch.equal(recorded(model), routes), "a refusal leaves something behind")


def refuses(model: PreTrainedModel, routes: Routes) -> bool:
    """Whether a forward under these routes ends in `RoutingError`."""
    try:
        with replay(model, routes):
            logits_of(model)
    except RoutingError:
        return True
    return False


@contextmanager
def embedding_counted(model: PreTrainedModel, ran: list[int]) -> Iterator[None]:
    """Note every forward that begins."""
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        yield
    finally:
        handle.remove()


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    "own routes": own_routes,
    "foreign routes": foreign_routes,
    "router gradient": router_gradient,
    "sentinel": sentinel_rows,
    "order": order_in_a_row,
    "BF16": bfloat16,
    "kernels": experts_kernels,
    "checkpointing": checkpointing,
    "layouts": layouts,
    "two models": two_models,
    "uint16": many_experts,
    "refusals": refusals,
}
"""The checks by the names that tables show."""
