"""What Routing Replay promises, as checks that any mixture-of-experts model can be held against.

Each check builds small models and raises `CheckFailed` where a promise is broken. They use transformers' own forward:
what is checked is replay, not the rest of this library.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from steadyrl.conformance.families import Gate, build
from steadyrl.conformance.gates import Handed, NotApplicable, dense, gate_weights, router_of, watched
from steadyrl.errors import UserError
from steadyrl.model.loading import recompute_activations
from steadyrl.routing import RoutingError, moe_blocks, record, replay
from steadyrl.types import Routes

IDS = torch.tensor([[3, 9, 2, 11, 5, 7, 10], [4, 8, 8, 6, 5, 11, 2]])
"""Two sequences of tokens that the smallest vocabularies have."""
SEQUENCES = [IDS[0, :4], IDS[1]]
ROUNDING = 1e-3
"""Log-probabilities and logits of small models in float32 that differ by less agree."""


class CheckFailed(UserError):
    """A promise of replay that a model breaks."""


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
        """A new model for each check."""
        if self.model is None:
            return build(self.config, seed=seed, dtype=dtype)
        return cast(PreTrainedModel, cast(nn.Module, copy.deepcopy(self.model)).to(dtype))


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
    """Valid routes, the model's own shifted by another number at each position and in each layer, and never by none."""
    routes = recorded(model, ids)
    counts = torch.tensor([experts for _, experts in moe_blocks(model)])[:, None]
    positions, layers = torch.arange(len(routes))[:, None, None], torch.arange(len(counts))[:, None]
    shifts = 1 + (positions + 2 * layers) % (counts - 1)
    return ((routes.int() + shifts) % counts).to(routes.dtype)


def unchosen(model: PreTrainedModel) -> Routes:
    """Valid routes that the model would never choose, given the model's own in the layers below."""
    routes = recorded(model)
    layers = [
        torch.zeros(len(routes), experts).scatter(1, routes[:, layer].long(), 1.0).topk(routes.shape[-1], largest=False)
        for layer, (_, experts) in enumerate(moe_blocks(model))
    ]
    return torch.stack([layer.indices for layer in layers], dim=1).to(routes.dtype)


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
    require(
        torch.equal(watched_again.routes(), routes), "under replay of the recorded routes the router prefers others"
    )


def handed_the_routes(seen: list[Handed], routes: Routes) -> None:
    """Each block's experts received exactly the routes."""
    require(len(seen) == routes.shape[1], f"{len(seen)} experts modules ran for {routes.shape[1]} layers of routes")
    for layer, handed in enumerate(seen):
        chosen = dense(torch.ones(routes[:, layer].shape), routes[:, layer], handed.weights.shape[1])
        wrong = ((handed.weights != 0) != (chosen != 0)).any(dim=1)
        require(
            not wrong.any(),
            f"layer {layer}: other experts than the routes at positions {wrong.nonzero()[:, 0].tolist()}",
        )


def under_foreign_routes(model: PreTrainedModel) -> tuple[Routes, list[Handed], Tensor]:
    """Foreign routes, what the experts were handed under them, and the logits."""
    routes = foreign(model)
    with replay(model, routes), watched(model) as seen:
        return routes, seen, logits_of(model)


def foreign_routes(subject: Subject) -> None:
    """Under foreign routes the experts receive exactly those, and the logits are others."""
    model = subject.build()
    routes, seen, changed = under_foreign_routes(model)
    handed_the_routes(seen, routes)
    require(far(changed, logits_of(model)) > ROUNDING, "foreign routes leave the logits as they were")


def gates_by_formula(subject: Subject) -> None:
    """Under foreign routes the gate weights are the family's formula, computed apart from the dense logits."""
    if subject.gate is None:
        raise NotApplicable("no formula is known for this family")
    weighed_by_formula(subject.build(), subject.gate, rounding=1e-4)


def weighed_by_formula(model: PreTrainedModel, gate: Gate, *, rounding: float) -> None:
    """Hold the gate weights of every layer against the formula."""
    routes, seen, _ = under_foreign_routes(model)
    for layer, handed in enumerate(seen):
        chosen = routes[:, layer].long()
        weights = gate_weights(gate, handed.logits, chosen, model.config.get_text_config())
        expected = dense(weights, chosen, handed.weights.shape[1])
        differ = far(handed.weights, expected) / float(expected.max())
        require(differ < rounding, f"layer {layer}: gate weights are off by {differ:.3g} of the largest")


def bfloat16(subject: Subject) -> None:
    """The same holds in BF16: own routes change no bit, foreign routes arrive with their weights."""
    own_routes(subject, torch.bfloat16)
    model = subject.build(dtype=torch.bfloat16)
    routes, seen, _ = under_foreign_routes(model)
    handed_the_routes(seen, routes)
    if subject.gate is not None:
        weighed_by_formula(model, subject.gate, rounding=3e-2)


def experts_kernels(subject: Subject) -> None:
    """Every implementation of the experts keeps own routes to the bit, and agrees on foreign ones to rounding."""
    model = subject.build()
    if not model._can_set_experts_implementation():
        raise NotApplicable("the experts have one implementation")
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
            differ = far(logits_of(model), expected)
        require(differ < ROUNDING, f"{kernel}: logits differ from eager's by {differ:.3g} under the same routes")


def order_in_a_row(subject: Subject) -> None:
    """The order of the experts within a row does not matter, beyond rounding."""
    model = subject.build()
    routes = recorded(model)
    if routes.shape[-1] == 1:
        raise NotApplicable("a row has one expert")
    if subject.gate is not None and subject.gate.score == "sparsemixer":
        raise NotApplicable("the first and the second choice are weighed differently")
    with replay(model, routes.flip(-1)):
        flipped = logits_of(model)
    differ = far(flipped, logits_of(model))
    require(differ < ROUNDING, f"routes in another order within each row move the logits by {differ:.3g}")


def router_gradient(subject: Subject) -> None:
    """Under routes that the router would not choose at all, it receives a gradient for every one of them."""
    model = subject.build()
    routes = unchosen(model)
    with replay(model, routes):
        gradients_of(model)
    for layer, (block, experts) in enumerate(moe_blocks(model)):
        gradient = cast(nn.Parameter, router_of(block, experts)[1].weight).grad
        if gradient is None:
            raise CheckFailed(f"layer {layer}: the router's weight has no gradient")
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
        raise NotApplicable("transformers cannot recompute it")
    routes = foreign(model)
    with replay(model, routes), watched(model) as once:
        straight = gradients_of(model)
    recompute_activations(model)
    with replay(model, routes), watched(model) as twice:
        same(gradients_of(model), straight, "with activation checkpointing")
    layers = len(once)
    require(len(twice) == 2 * layers, f"{layers} blocks ran {len(twice)} times in a forward and its recomputation")
    handed_the_routes(once, routes)
    handed_the_routes(twice[:layers], routes)
    handed_the_routes(twice[layers:][::-1], routes)


def alone(model: PreTrainedModel, sequences: list[Tensor], routes: list[Tensor] | None) -> list[Tensor]:
    """Log-probabilities of each sequence in a separate forward, under its routes or natively."""
    found = []
    for which, ids in enumerate(sequences):
        with nullcontext() if routes is None else replay(model, routes[which]):
            found.append(logits_of(model, ids[None])[0].log_softmax(dim=-1))
    return found


def in_one_row(model: PreTrainedModel, sequences: list[Tensor], routes: Routes | None) -> Tensor:
    """Log-probabilities of sequences that share a row, their positions starting at 0 again."""
    positions = torch.cat([torch.arange(len(ids)) for ids in sequences])[None]
    with nullcontext() if routes is None else replay(model, routes), torch.no_grad():
        row = model(input_ids=torch.cat(sequences)[None], position_ids=positions, use_cache=False).logits
    return row[0].log_softmax(dim=-1)


def padded(subject: Subject) -> None:
    """Padded to a grid or split into single rows, every token keeps its own row of routes."""
    model = subject.build()
    short, long = SEQUENCES
    routes = [foreign(model, ids[None]) for ids in SEQUENCES]
    gap = torch.full_like(routes[1][: len(long) - len(short)], torch.iinfo(routes[1].dtype).max)
    grid = torch.stack([torch.cat([short, torch.zeros(len(gap), dtype=torch.long)]), long])
    with replay(model, torch.cat([routes[0], gap, routes[1]])):
        rows = logits_of(model, grid).log_softmax(dim=-1)
    expected = alone(model, SEQUENCES, routes)
    close(rows[0, : len(short)], expected[0], "padded on the right")
    close(rows[1], expected[1], "beside a padded row")


def packed(subject: Subject) -> None:
    """Packed into one row, every token keeps its own row of routes."""
    model = subject.build()
    if far(in_one_row(model, SEQUENCES, None), torch.cat(alone(model, SEQUENCES, None))) > ROUNDING:
        raise NotApplicable("sequences that share a row see each other in transformers' own forward, replay or not")
    routes = [foreign(model, ids[None]) for ids in SEQUENCES]
    close(in_one_row(model, SEQUENCES, torch.cat(routes)), torch.cat(alone(model, SEQUENCES, routes)), "packed")


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one - other).abs().max())


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Log-probabilities agree to rounding."""
    differ = far(one, other)
    require(differ < ROUNDING, f"{what}: log-probabilities differ by {differ:.3g} from those of each sequence alone")


def two_models(subject: Subject) -> None:
    """A policy and a reference in one process keep their routes apart, in turns and in two threads at once."""
    models = [subject.build(seed=0), subject.build(seed=1)]
    routes = [foreign(models[0]), recorded(models[1])]
    expected = []
    for model, rows in zip(models, routes, strict=True):
        with replay(model, rows), watched(model) as seen:
            expected.append(logits_of(model))
        handed_the_routes(seen, rows)
    together = threading.Barrier(2, timeout=60)

    def keeps_apart(which: int) -> bool:
        with replay(models[which], routes[which]):
            return all(together.wait() < 2 and torch.equal(logits_of(models[which]), expected[which]) for _ in range(3))

    with replay(models[0], routes[0]), replay(models[1], routes[1]):
        require(torch.equal(logits_of(models[0]), expected[0]), "a second model's replay changes the first's")
        require(torch.equal(logits_of(models[1]), expected[1]), "a first model's replay changes the second's")
    with ThreadPoolExecutor(2) as threads:
        require(all(list(threads.map(keeps_apart, range(2)))), "two threads mix their routes")


def many_experts(subject: Subject) -> None:
    """More than 256 experts: routes are 16 bits wide, and every id arrives."""
    if subject.many is None:
        raise NotApplicable("the number of its experts is its own")
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
        "another number of slots": other_slots(routes, experts),
        "another type": routes.to(torch.uint16 if routes.dtype == torch.uint8 else torch.uint8),
        "an id out of range": routes.clone().fill_(experts),
        "an id twice": torch.ones_like(routes),
    }
    if routes.shape[-1] == 1:
        del wrong["an id twice"]
    with embedding_counted(model, ran):
        for what, given in wrong.items():
            require(refuses(model, given), f"routes with {what} are taken")
            require(not ran, f"routes with {what} are refused only after a forward has begun")
    require(refuses(model, routes[1:]), "routes of one position fewer are taken")
    require(torch.equal(recorded(model), routes), "a refusal leaves something behind")


def other_slots(routes: Routes, experts: int) -> Tensor:
    """Valid rows with one slot fewer, or with two where there was one."""
    if routes.shape[-1] > 1:
        return routes[..., 1:]
    return torch.cat([routes, ((routes.int() + 1) % experts).to(routes.dtype)], dim=-1)


def refuses(model: PreTrainedModel, routes: Tensor) -> bool:
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
    "gate weights": gates_by_formula,
    "router gradient": router_gradient,
    "sentinel": sentinel_rows,
    "order": order_in_a_row,
    "BF16": bfloat16,
    "kernels": experts_kernels,
    "checkpointing": checkpointing,
    "padded": padded,
    "packed": packed,
    "two models": two_models,
    "uint16": many_experts,
    "refusals": refusals,
}
"""The checks by the names that tables show."""
