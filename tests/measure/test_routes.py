"""What is measured of the routers, on real routes of the embedded engine."""

from dataclasses import replace

import pytest
import torch

from builders import completion, random_ids, tiny_policy
from steadyrl.engine.base import EngineError, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.measure.routes import replay_effect, route_metrics, unrouted
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack
from steadyrl.routing import record
from steadyrl.training.forward import old_pass
from steadyrl.types import Completion, MicroBatch, Sampling, Trajectory

SAMPLING = Sampling(temperature=1.0, max_new_tokens=24)


def sampled(policy: Policy, precision: str) -> list[Trajectory]:
    prompt = random_ids(7, seed=0)
    engine = LocalEngine(policy.model, end_tokens=set(), precision=precision)
    (group,) = generate(engine, [prompt], responses=6, sampling=SAMPLING, seed=0)
    return [Trajectory.single(prompt, c, advantage=1.0, group_tokens=10) for c in group]


def packed(policy: Policy, responses: list[Trajectory]) -> list[MicroBatch]:
    return pack(responses, micro_tokens=4096, one_block=policy.one_block)


def measured(policy: Policy, responses: list[Trajectory]) -> dict[str, float]:
    return route_metrics(
        [old_pass(policy, micro, replay="none", temperature=1.0) for micro in packed(policy, responses)]
    )


def test_engines_that_agree() -> None:
    policy = tiny_policy()
    metrics = measured(policy, sampled(policy, "native"))
    assert metrics == {"routes/disagreement": 0.0, "routes/layer_0": 0.0, "routes/layer_1": 0.0}  # and no margin


def test_a_layer_that_differs_is_named() -> None:
    """One expert of layer 1 is changed at the three last positions of one response."""
    policy = tiny_policy()
    responses = sampled(policy, "native")
    own = responses[0].routes
    assert own is not None
    changed = own.clone()
    for row in changed[-3:, 1]:
        row[0] = next(e for e in range(8) if e not in row.tolist())
    responses[0] = replace(responses[0], routes=changed)
    metrics = measured(policy, responses)
    positions = 7 + 6 * 23  # the prompt is computed once
    assert metrics["routes/layer_0"] == 0.0
    assert metrics["routes/layer_1"] == pytest.approx(3 / positions)
    assert metrics["routes/disagreement"] == pytest.approx(3 / positions / 2)
    assert metrics["routes/margin"] > 0.0


def test_margins_are_the_gap_between_the_last_chosen_and_the_next() -> None:
    policy = tiny_policy()
    ids, fed = torch.tensor([random_ids(9, seed=3)]), []
    routers = [layer.mlp.gate for layer in policy.model.model.layers]
    for router in routers:
        router.register_forward_pre_hook(lambda module, args: fed.append(args[0].reshape(9, -1)))
    with record(policy.model, margins=True) as recorder, torch.no_grad():
        policy.model.base_model(input_ids=ids, use_cache=False)
    for layer, (router, hidden) in enumerate(zip(routers, fed, strict=True)):
        scores = (hidden @ router.weight.T).softmax(dim=-1).sort(dim=-1, descending=True).values
        torch.testing.assert_close(recorder.margins()[:, layer], (scores[:, 1] - scores[:, 2]).detach())


def test_all_experts_chosen_is_no_tie() -> None:
    policy = tiny_policy(num_experts=2)
    with record(policy.model, margins=True) as recorder, torch.no_grad():
        policy.model.base_model(input_ids=torch.tensor([random_ids(4, seed=0)]), use_cache=False)
    assert recorder.margins().isinf().all()


def test_replay_brings_engines_of_different_precision_closer() -> None:
    policy = tiny_policy()
    metrics = replay_effect(policy, packed(policy, sampled(policy, "fp8")), temperature=1.0)
    assert 0.0 < metrics["replay/k3_replayed"] < metrics["replay/k3_natural"]
    assert metrics["replay/removed"] == pytest.approx(1 - metrics["replay/k3_replayed"] / metrics["replay/k3_natural"])


def test_replay_of_equal_routes_removes_nothing() -> None:
    policy = tiny_policy()
    metrics = replay_effect(policy, packed(policy, sampled(policy, "native")), temperature=1.0)
    assert metrics["replay/k3_natural"] == metrics["replay/k3_replayed"]


def blank(count: int, rows: int = 10) -> Completion:
    routes = torch.zeros(rows, 2, 2, dtype=torch.uint8)
    routes[:, :, 1] = 1
    routes[:count] = 255
    return completion(tuple(range(3, 3 + rows - 1)), logprobs=torch.zeros(rows - 1), routes=routes)


def test_positions_without_routes_are_counted_and_limited() -> None:
    completions = [blank(0), blank(1)]
    assert unrouted(completions, limit=0.05) == {"routes/unrouted": 0.05}
    with pytest.raises(EngineError, match=r"no experts for 5.0% of the positions, above update.max_unrouted = 0.04"):
        unrouted(completions, limit=0.04)
    assert unrouted([replace(c, routes=None) for c in completions], limit=0.0) == {}


def test_a_position_without_routes_in_any_layer_counts() -> None:
    """Whichever layer it is: the trainer routes there by itself."""
    for layer in (0, 1):
        one = blank(0)
        assert one.routes is not None
        routes = one.routes.clone()
        routes[3, layer] = 255
        with pytest.raises(EngineError, match=r"no experts for 10.0% of the positions"):
            unrouted([replace(one, routes=routes)], limit=0.09)


def test_a_layer_without_routes_differs_from_nothing() -> None:
    policy = tiny_policy()
    one = sampled(policy, "native")[0]
    assert one.routes is not None
    before = measured(policy, [one])
    assert before["routes/disagreement"] == 0.0
    for layer in (0, 1):
        routes = one.routes.clone()
        routes[::2, layer] = 255
        found = measured(policy, [replace(one, routes=routes)])
        assert found["routes/disagreement"] == found["routes/layer_0"] == found["routes/layer_1"] == 0.0
        # a set that does differ is counted among those that are known
        routes[1, layer, 0] = next(e for e in range(8) if e not in routes[1, layer].tolist())
        rows, apart = len(routes), measured(policy, [replace(one, routes=routes)])
        known = rows - len(routes[::2])
        assert apart[f"routes/layer_{layer}"] == pytest.approx(1 / known)
        assert apart["routes/disagreement"] == pytest.approx(1 / (rows + known))
