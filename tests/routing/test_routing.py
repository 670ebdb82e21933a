"""Hooks, refusals and the probe; what holds for every family is in `steadyrl.conformance` and its tests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import PreTrainedModel

from builders import ALPHABET, FAMILIES, MOE, SMALL, dense_policy, tiny_policy
from steadyrl.model.loading import build_tiny
from steadyrl.routing import (
    RoutingError,
    check_recording,
    check_replay,
    check_routes,
    hooks,
    is_moe,
    moe_blocks,
    record,
    replay,
    route_dtype,
)
from steadyrl.types import Routes

IDS = torch.tensor([[3, 9, 20, 11, 5], [30, 8, 8, 14, 6]])


def logits_and_gradients(model: PreTrainedModel, ids: Tensor = IDS) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    logits.log_softmax(dim=-1)[..., 4].sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def logits_of(model: PreTrainedModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def recorded(model: PreTrainedModel, ids: Tensor = IDS) -> Routes:
    with record(model) as recorder:
        logits_of(model, ids)
    return recorder.routes()


def foreign(model: PreTrainedModel, *, shift: int = 1) -> Routes:
    """Routes that the model did not choose, distinct within each set."""
    return (recorded(model) + shift) % 8


@contextmanager
def what_experts_get(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, ...]]]:
    """The inputs (hidden states, experts, weights) of each experts module, in layer order."""
    seen: list[tuple[Tensor, ...]] = []
    modules = [m for m in model.modules() if hasattr(type(m), "_apply_gate")]
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args)) for m in modules]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("normalised", [True, False])
def test_gate_weights_are_the_live_routers(normalised: bool) -> None:
    model = tiny_policy(norm_topk_prob=normalised).model
    routes = foreign(model)
    with replay(model, routes), what_experts_get(model) as seen:
        logits_of(model)
    for layer, (hidden, _, weights) in enumerate(seen):
        router = model.get_submodule(f"model.layers.{layer}.mlp.gate").weight
        probabilities = torch.softmax(hidden @ router.T, dim=-1)  # over all 8 experts
        expected = torch.stack([p[experts] for p, experts in zip(probabilities, routes[:, layer].long(), strict=True)])
        expected = expected / expected.sum(dim=-1, keepdim=True) if normalised else expected
        torch.testing.assert_close(weights, expected)


def test_the_router_learns_under_replay() -> None:
    model = tiny_policy().model
    with replay(model, foreign(model)):
        _, gradients = logits_and_gradients(model)
    for layer in range(2):
        assert (gradients[f"model.layers.{layer}.mlp.gate.weight"].abs().amax(dim=1) > 0).sum() > 2


def test_sentinel_rows_are_routed_natively() -> None:
    model = tiny_policy().model
    routes = foreign(model)
    routes[3] = routes[7] = 255
    with replay(model, routes) as watched, what_experts_get(model) as seen:
        logits_of(model)
    for layer, (_, experts, _) in enumerate(seen):
        assert torch.equal(experts[[3, 7]], watched.routes()[[3, 7], layer].long())
        others = [0, 1, 2, 4, 5, 6, 8, 9]
        assert torch.equal(experts[others], routes[others, layer].long())
    with replay(model, torch.full_like(routes, 255)):
        nothing_replayed = logits_of(model)
    assert torch.equal(nothing_replayed, logits_of(model))


def test_the_recorder_tells_what_the_live_router_prefers() -> None:
    model = tiny_policy().model
    with replay(model, foreign(model)) as watched:
        logits_of(model)
    assert torch.equal(watched.routes()[:, 0], recorded(model)[:, 0])  # nothing was replayed below the first layer
    assert not torch.equal(watched.routes(), foreign(model))


def test_the_order_within_a_set_does_not_matter() -> None:
    model = tiny_policy(num_experts_per_tok=4).model
    with replay(model, recorded(model).flip(-1)):
        flipped = logits_of(model)
    torch.testing.assert_close(flipped, logits_of(model), atol=1e-6, rtol=1e-5)


def test_a_shift_by_one_token_is_caught() -> None:
    model = tiny_policy().model
    with replay(model, recorded(model).roll(1, dims=0)):
        shifted = logits_of(model)
    assert (shifted - logits_of(model)).abs().max() > 0.1


def test_leading_dimensions_are_those_of_the_input() -> None:
    model = tiny_policy().model
    routes = foreign(model)
    with replay(model, routes):
        flat = logits_of(model)
    with replay(model, routes.view(*IDS.shape, 2, 2)):
        assert torch.equal(logits_of(model), flat)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_behind(fails: bool) -> None:
    model = tiny_policy().model
    before, forwards = logits_of(model), [block.forward for block, _ in moe_blocks(model)]
    try:
        with replay(model, foreign(model)):
            logits_of(model)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [block.forward for block, _ in moe_blocks(model)] == forwards
    assert torch.equal(logits_of(model), before)


def test_two_models_at_once() -> None:
    one, two = tiny_policy(0).model, tiny_policy(1).model
    routes_one, routes_two = foreign(one), foreign(two, shift=3)
    with replay(one, routes_one):
        expected_one = logits_of(one)
    with replay(two, routes_two):
        expected_two = logits_of(two)
    with replay(one, routes_one), replay(two, routes_two) as watched:
        assert torch.equal(logits_of(one), expected_one)
        assert torch.equal(logits_of(two), expected_two)
        assert torch.equal(logits_of(one), expected_one)
    assert torch.equal(watched.routes()[:, 0], recorded(two)[:, 0])


def test_replay_inside_record() -> None:
    model = tiny_policy().model
    native = recorded(model)
    with record(model) as outer:
        with replay(model, foreign(model)):
            logits_of(model)
        logits_of(model)
        assert torch.equal(outer.routes(), native)


def test_threads_do_not_see_each_other() -> None:
    models = [tiny_policy(seed).model for seed in range(2)]
    routes = [foreign(models[0]), None]
    with replay(models[0], foreign(models[0])):
        expected = [logits_of(models[0]), logits_of(models[1])]
    together, faults = threading.Barrier(2), []

    def work(which: int) -> None:
        context = record(models[which]) if routes[which] is None else replay(models[which], routes[which])
        with context:
            for _ in range(20):
                together.wait()
                if not torch.equal(logits_of(models[which]), expected[which]):
                    faults.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def in_another_thread(work: Callable[[], object], *, name: str = "second") -> list[Exception]:
    """What it raised."""
    faults: list[Exception] = []

    def run() -> None:
        try:
            work()
        except RoutingError as error:
            faults.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    return faults


@pytest.mark.parametrize("opened", ["record", "replay"])
@pytest.mark.parametrize("wanted", ["record", "replay", "forward"])
def test_a_second_thread_on_the_same_model_is_refused_and_told_of_the_first(opened: str, wanted: str) -> None:
    model = tiny_policy().model
    routes, before = foreign(model), logits_of(model)
    uses = {
        "record": lambda: recorded(model),
        "replay": lambda: replay(model, routes).__enter__(),
        "forward": lambda: logits_of(model),
    }
    with record(model) if opened == "record" else replay(model, routes):
        expected = logits_of(model)
        (error,) = in_another_thread(uses[wanted])
        assert f"thread {threading.current_thread().name!r} records or replays" in str(error)
        assert "'second' cannot use it now" in str(error)
        assert torch.equal(logits_of(model), expected)
    assert not in_another_thread(uses["forward"])
    assert not in_another_thread(uses["record"])
    assert torch.equal(logits_of(model), before)


def test_of_two_threads_at_once_one_is_refused_and_the_other_right() -> None:
    model = tiny_policy().model
    routes = [foreign(model, shift=shift) for shift in (1, 2)]
    expected = []
    for own in routes:
        with replay(model, own):
            expected.append(logits_of(model))
    together, both_done, found = threading.Barrier(2), threading.Barrier(2), {}

    def work(which: int) -> None:
        together.wait()
        try:
            with replay(model, routes[which]):
                found[which] = torch.equal(logits_of(model), expected[which])
                both_done.wait()
        except RoutingError:
            both_done.wait()

    for _ in range(20):
        found.clear()
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(found.values()) == [True]


def test_replay_inside_replay_is_refused_and_the_outer_goes_on() -> None:
    model = tiny_policy().model
    with replay(model, foreign(model)):
        expected = logits_of(model)
        with pytest.raises(RoutingError, match="routes are being replayed already"), replay(model, recorded(model)):
            pass
        assert torch.equal(logits_of(model), expected)
        with record(model), pytest.raises(RoutingError, match="already"), replay(model, recorded(model)):
            pass
    with replay(model, foreign(model)):
        assert torch.equal(logits_of(model), expected)


@pytest.mark.parametrize("outer", [record, None])
def test_a_failure_inside_leaves_the_model_free(outer) -> None:
    model = tiny_policy().model
    with pytest.raises(KeyError), nullcontext() if outer is None else outer(model), replay(model, foreign(model)):
        raise KeyError
    assert not in_another_thread(lambda: recorded(model))


def checkpointed(*, reentrant: bool) -> PreTrainedModel:
    model = tiny_policy().model
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model.train()


def test_a_reentrant_checkpoint_replays_inside_the_context() -> None:
    plain, model = tiny_policy().model, checkpointed(reentrant=True)
    routes = foreign(plain)
    with replay(plain, routes):
        logits, gradients = logits_and_gradients(plain)
    with replay(model, routes):
        again, again_gradients = logits_and_gradients(model)
    assert torch.equal(again, logits)
    assert all(torch.equal(again_gradients[n], gradients[n]) for n in gradients)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_with_the_backward_outside_is_refused() -> None:
    model = checkpointed(reentrant=True)
    routes = foreign(model)
    with pytest.raises(RoutingError, match="call backward inside the context"), replay(model, routes):
        loss = model(input_ids=IDS, use_cache=False).logits.sum()
    loss.backward()  # the model is free again
    with replay(model, routes):  # no backward can follow
        model(input_ids=IDS, use_cache=False)
    with replay(model, routes):
        logits_of(model)
    with record(model):  # the recomputation routes as the forward did
        model(input_ids=IDS, use_cache=False).logits.sum().backward()


def test_another_checkpoint_with_the_backward_outside_is_no_silent_error() -> None:
    model = checkpointed(reentrant=False)
    with replay(model, foreign(model)):
        loss = model(input_ids=IDS, use_cache=False).logits.sum()
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        loss.backward()


def test_recomputed_activations_replay_too() -> None:
    model = tiny_policy().model
    routes = foreign(model)
    with replay(model, routes):
        logits, gradients = logits_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with replay(model, routes), what_experts_get(model) as seen:
        again, again_gradients = logits_and_gradients(model)
    assert len(seen) == 4  # forward and recomputation
    assert torch.equal(again, logits)
    assert all(torch.equal(again_gradients[n], gradients[n]) for n in gradients)


@pytest.mark.parametrize(("experts", "dtype"), [(8, torch.uint8), (255, torch.uint8), (256, torch.uint16)])
def test_the_type_leaves_room_for_the_sentinel(experts: int, dtype: torch.dtype) -> None:
    assert route_dtype(experts) == dtype


def test_more_experts_than_a_byte_counts() -> None:
    model = tiny_policy(num_experts=300, num_experts_per_tok=8).model
    routes = recorded(model)
    assert routes.dtype == torch.uint16
    assert routes.int().max() > 255
    shifted = ((routes.int() + 100) % 300).to(torch.uint16)
    shifted[4] = 65535
    with replay(model, shifted) as watched, what_experts_get(model) as seen:
        logits_of(model)
    for layer, (_, experts, _) in enumerate(seen):
        assert torch.equal(experts[:4], shifted[:4, layer].long())
        assert torch.equal(experts[4], watched.routes()[4, layer].long())


def row_of(routes: Routes, *ids: int) -> Routes:
    """The routes with other experts at position 3, layer 1."""
    changed = routes.clone()
    changed[3, 1] = torch.tensor(ids, dtype=routes.dtype)
    return changed


def test_what_does_not_fit_is_refused_with_its_sizes_before_a_forward() -> None:
    model = tiny_policy().model
    routes = recorded(model)
    at = "routes at position 3, layer 1 are"
    for wrong, message in (
        (routes[:, :1], "routes have 1 layers, the model has 2"),
        (routes.to(torch.uint16), "routes are torch.uint16, this model's are torch.uint8"),
        (routes[..., :1], "routes have 1 slots, layer 0 chooses 2 experts"),
        (row_of(routes, 2, 8), rf"{at} \[2, 8\]: an expert id out of range; the layer has 8 experts"),
        (row_of(routes, 254, 3), rf"{at} \[254, 3\]: an expert id out of range"),
        (row_of(routes, 5, 5), rf"{at} \[5, 5\]: an expert twice"),
        (row_of(routes, 255, 5), rf"{at} \[255, 5\]: the sentinel in some slots and not in others"),
    ):
        with pytest.raises(RoutingError, match=message), replay(model, wrong):
            pytest.fail("the context was entered")
    for right in (row_of(routes, 255, 255), row_of(routes, 7, 0)):
        with replay(model, right):
            logits_of(model)


def test_checked_routes_are_replayed_alike_and_their_ids_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_policy().model
    routes = row_of(foreign(model), 255, 255)
    check_routes(model, routes)
    with replay(model, routes):
        expected = logits_of(model)
    monkeypatch.setattr(hooks, "check_ids", lambda *_: pytest.fail("the ids were checked again"))
    with replay(model, routes, checked=True):
        assert torch.equal(logits_of(model), expected)
    with pytest.raises(RoutingError, match="routes have 1 layers"), replay(model, routes[:, :1], checked=True):
        pytest.fail("the context was entered")


def test_another_number_of_positions_is_refused_by_the_first_block() -> None:
    model = tiny_policy().model
    routes = recorded(model)
    for wrong, rows in ((routes[:9], 9), (torch.cat([routes, routes]), 20)):
        message = rf"layer 0: routes are \({rows}, 2\) \(positions, slots\), the forward needs \(10, 2\)"
        with pytest.raises(RoutingError, match=message), replay(model, wrong):
            logits_of(model)
    assert torch.equal(recorded(model), routes)  # and nothing stayed behind


def test_more_slots_than_the_router_chooses_are_refused_where_no_field_tells() -> None:
    model = tiny_policy().model
    for block, _ in moe_blocks(model):
        block.gate.k = block.gate.__dict__.pop("top_k")
        block.gate.forward = lambda x, gate=block.gate: routed_without_a_name(gate, x)
    routes = recorded(model)
    wider = torch.stack([(routes[..., 0] + i) % 8 for i in range(3)], dim=-1)
    message = "layer 0: routes have 3 slots, but a choice of 2 experts was seen"
    with pytest.raises(RoutingError, match=message), replay(model, wider):
        logits_of(model)
    message = r"layer 0: routes are \(10, 1\) .*the forward needs \(10, 2\)"
    with pytest.raises(RoutingError, match=message), replay(model, routes[..., :1]):
        logits_of(model)


def routed_without_a_name(gate, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight)
    weights, experts = torch.topk(logits.softmax(-1), gate.k)
    return logits, weights, experts


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_policy().model
    before = logits_of(model)
    check_replay(model)
    assert torch.equal(logits_of(model), before)


def test_scores_masked_before_the_choice_are_gathered_from_before_the_mask() -> None:
    # 4 groups of 2 experts; the scores of those outside the best 2 groups are set to 0 before the choice
    fields = SMALL | FAMILIES["deepseek_v3"] | {"topk_method": "group_limited_greedy"}
    model = build_tiny(family="deepseek_v2", alphabet=ALPHABET, config=fields, seed=0, dtype=torch.float32).model
    check_replay(model)
    routes = recorded(model)
    routes[:, :, 0], routes[:, :, 1] = 0, 7  # of the first and the last group, live or not
    with replay(model, routes), what_experts_get(model) as seen:
        logits_of(model)
    for layer, (hidden, _, weights) in enumerate(seen):
        router = model.get_submodule(f"model.layers.{layer}.mlp.gate").weight
        torch.testing.assert_close(weights, torch.softmax(hidden @ router.T, dim=-1)[:, [0, 7]])


def test_a_choice_made_in_another_number_of_steps_is_refused() -> None:
    fields = SMALL | FAMILIES["mixtral"]  # in training this router draws its experts at random, with more maxima
    model = build_tiny(family="phimoe", alphabet=ALPHABET, config=fields, seed=0, dtype=torch.float32).model
    routes = recorded(model)
    model.train()
    with pytest.raises(RoutingError, match=r"layer 0: .*the forward needs \(10, 3\)"), replay(model, routes):
        logits_of(model)


def test_the_probe_refuses_a_choice_that_it_cannot_see() -> None:
    model = tiny_policy().model
    gate = model.get_submodule("model.layers.1.mlp.gate")
    fixed = torch.tensor([[0, 1]])
    gate.forward = lambda x: (x, torch.full((x.numel() // 32, 2), 0.5), fixed.expand(x.numel() // 32, 2))
    with pytest.raises(RoutingError, match=r"Qwen3MoeForCausalLM: no expert choice was seen .* \[1\] \(Qwen3MoeSparse"):
        check_replay(model)
    routes = recorded(tiny_policy().model)
    with pytest.raises(RoutingError, match="layer 1: routes have 2 slots, but a choice of 0"), replay(model, routes):
        logits_of(model)


def test_the_probe_refuses_a_replayed_expert_without_a_gate_weight() -> None:
    model = tiny_policy().model
    gate = model.get_submodule("model.layers.1.mlp.gate")

    def masked(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.nn.functional.linear(hidden, gate.weight)
        scores = logits.softmax(-1) * (logits > logits.median(dim=-1, keepdim=True).values)
        return logits, *torch.topk(scores, 2)

    gate.forward = masked
    with pytest.raises(RoutingError, match=r"Qwen3MoeForCausalLM, .* layer 1: a replayed expert gets no gate weight"):
        check_replay(model)


def test_the_probe_refuses_one_expert_with_a_weight_that_is_always_one() -> None:
    with pytest.raises(RoutingError, match="layer 0: it chooses one expert and renormalises, so the gate weight is 1 "):
        check_replay(tiny_policy(num_experts_per_tok=1).model)
    check_replay(tiny_policy(num_experts_per_tok=1, norm_topk_prob=False).model)


def test_the_probe_makes_do_with_few_tokens() -> None:
    fields = SMALL | MOE
    model = build_tiny(family="qwen3_moe", alphabet="01", config=fields, seed=0, dtype=torch.float32).model
    assert check_recording(model).shape == (4, 2, 2)  # five tokens, less the one that pads
    check_replay(model)


def test_experts_of_an_unknown_kind_are_not_called_dense() -> None:
    fields = SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2}
    del fields["head_dim"]
    model = build_tiny(family="jetmoe", alphabet=ALPHABET, config=fields, seed=0, dtype=torch.float32).model
    with pytest.raises(RoutingError, match=r"JetMoeForCausalLM has experts \(.*8.*\) in modules of a kind"):
        check_replay(model)


def test_dense_layers_before_between_and_after() -> None:
    model = tiny_policy(num_hidden_layers=5, mlp_only_layers=[0, 2, 4]).model
    check_replay(model)
    routes = foreign(model)
    assert routes.shape == (10, 2, 2)
    with replay(model, routes), what_experts_get(model) as seen:
        logits_of(model)
    assert [torch.equal(experts, routes[:, i].long()) for i, (_, experts, _) in enumerate(seen)] == [True, True]


class Adapted(nn.Module):
    """As adapters of low rank wrap the experts: the parent of the experts is then not the block."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *args: Tensor) -> Tensor:
        return self.base_layer(*args) * self.scale


def test_experts_under_adapters_are_found() -> None:
    model = tiny_policy().model
    routes, blocks = foreign(model), moe_blocks(model)
    with replay(model, routes):
        expected = logits_of(model)
    for block, _ in blocks:
        block.experts = Adapted(Adapted(block.experts))
    assert moe_blocks(model) == blocks
    check_replay(model)
    with replay(model, routes):
        assert torch.equal(logits_of(model), expected)
        _, gradients = logits_and_gradients(model)
    assert gradients["model.layers.0.mlp.gate.weight"].any()
    assert gradients["model.layers.0.mlp.experts.scale"] != 0


def test_dense_models_have_nothing_to_replay() -> None:
    model = dense_policy().model
    assert not is_moe(model)
    assert is_moe(tiny_policy().model)
    with pytest.raises(RoutingError, match="Qwen3ForCausalLM is dense"):
        check_replay(model)
    with pytest.raises(RoutingError, match="Qwen3ForCausalLM is dense"), replay(model, recorded(tiny_policy().model)):
        pass


def test_a_block_that_did_not_run_is_named() -> None:
    with record(tiny_policy().model) as recorder, pytest.raises(RoutingError, match=r"layer\(s\) \[0, 1\]"):
        recorder.routes()


def test_a_topk_over_something_else_is_left_alone() -> None:
    model = tiny_policy().model
    found = []
    experts = model.get_submodule("model.layers.0.mlp.experts")
    experts.register_forward_pre_hook(lambda _, args: found.append(torch.topk(torch.arange(5.0), 2).indices.tolist()))
    with replay(model, foreign(model)) as watched:
        logits_of(model)
    assert found == [[4, 3], [4, 3]]
    assert torch.equal(watched.routes()[:, 0], recorded(model)[:, 0])
