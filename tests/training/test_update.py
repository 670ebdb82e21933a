import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from builders import dense_policy, random_ids, tiny_policy
from steadyrl.algo import CISPO, GRPO, MiniRL, Objective, ledger
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.measure.routes import route_metrics
from steadyrl.measure.step import old_pass_metrics, step_ledger, update_metrics
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack
from steadyrl.routing import hooks
from steadyrl.training.forward import OldPass, Replay, old_pass, update_at_old, update_later
from steadyrl.training.step import GradientStep, update
from steadyrl.training.trainer import micro_batches
from steadyrl.types import Completion, Sampling, Trajectory

PROMPTS = [random_ids(n, seed=n) for n in (4, 7, 5, 6)]
RESPONSES = 4
TEMPERATURE = 0.8


def roll_out(policy: Policy, *, precision: str = "fp8", tokens: int = 12) -> list[list[Completion]]:
    """Four responses to each of four prompts, of different lengths: token 1 ends one."""
    engine = LocalEngine(policy.model, end_tokens={1, 5, 9}, precision=precision)
    sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=tokens)
    return generate(engine, PROMPTS, responses=RESPONSES, sampling=sampling, seed=3)


def rewarded_responses(
    groups: Sequence[Sequence[Completion]], *, resting: Sequence[int] = ()
) -> list[list[Trajectory]]:
    """Responses with made-up advantages; those of the groups in `resting` are all zero."""
    draw = torch.Generator().manual_seed(11)
    out = []
    for number, (prompt, group) in enumerate(zip(PROMPTS, groups, strict=False)):
        rewards = torch.rand(len(group), generator=draw)
        advantages = torch.zeros(len(group)) if number in resting else rewards - rewards.mean()
        out.append(
            [
                Trajectory.single(
                    prompt, completion, advantage=advantage, group_tokens=sum(len(c.token_ids) for c in group)
                )
                for completion, advantage in zip(group, advantages.tolist(), strict=True)
            ]
        )
    return out


def old_passes(
    policy: Policy, groups: Sequence[Sequence[Trajectory]], *, mode: Replay, micro_tokens: int = 4096
) -> list[OldPass]:
    flat = [response for group in groups for response in group]
    micros = pack(flat, micro_tokens=micro_tokens, one_block=False)
    return [old_pass(policy, micro, replay=mode, temperature=TEMPERATURE) for micro in micros]


def take_update(
    policy: Policy,
    minibatch: Sequence[OldPass],
    *,
    groups: int,
    optimizer: torch.optim.Optimizer | None = None,
    objective: Objective | None = None,
    lr: float = 0.0,
    max_grad_norm: float | None = None,
) -> GradientStep | None:
    loss = partial(objective or MiniRL(), responses=groups * RESPONSES, groups=groups)
    return update(
        policy.model,
        optimizer or torch.optim.SGD(policy.model.parameters(), lr=lr),
        [partial(update_later, policy, old, loss, temperature=TEMPERATURE) for old in minibatch if old.micro.moves],
        max_grad_norm=max_grad_norm,
    )


def factors(passes: Sequence[OldPass], *outcomes: GradientStep | None) -> dict[str, float]:
    """`mismatch/`, `staleness/` and `weight/` of a step."""
    return ledger.summary(step_ledger(passes, outcomes, policy_version=0))


def gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def experts_modules(policy: Policy) -> list[nn.Module]:
    return [m for m in policy.model.modules() if hasattr(type(m), "_apply_gate")]


@contextmanager
def experts_used(policy: Policy) -> Iterator[list[list[Tensor]]]:
    """What reaches each layer's experts: one list per layer, one [positions, slots] per forward."""
    seen: list[list[Tensor]] = [[] for _ in experts_modules(policy)]
    hooks = []
    for layer, module in enumerate(experts_modules(policy)):

        def note(module: nn.Module, args: tuple[Tensor, ...], layer: int = layer) -> None:
            seen[layer].append(args[1].detach().clone())

        hooks.append(module.register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def agreement(used: Sequence[Sequence[Tensor]], routes: Sequence[Tensor]) -> float:
    """Share of fed (position, layer) pairs whose experts are those of `routes`, one tensor per forward."""
    equal = []
    for forward, expected in enumerate(routes):
        flat = expected.reshape(-1, *expected.shape[-2:])
        fed = flat[:, 0, 0] != torch.iinfo(flat.dtype).max
        for layer, calls in enumerate(used):
            equal.append((calls[forward][fed] == flat[fed, layer].long()).all(dim=-1))
    return torch.cat(equal).float().mean().item()


# ---- the ratio to π_old


@pytest.mark.parametrize("mode", ["none", "R2", "R3"])
@pytest.mark.parametrize("micro_tokens", [64, 4096])
def test_the_first_ratio_to_the_old_policy_is_exactly_one(mode, micro_tokens):
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy))
    passes = old_passes(policy, groups, mode=mode, micro_tokens=micro_tokens)
    outcome = take_update(policy, passes, groups=4, lr=0.1)
    metrics = update_metrics([outcome]) | factors(passes, outcome)
    assert metrics["staleness/max"] == 1.0
    assert metrics["staleness/mean"] == 1.0
    assert metrics["staleness/k3"] == 0.0
    assert metrics["clip/low"] == metrics["clip/high"] == 0.0


@pytest.mark.parametrize("mode", ["none", "R2", "R3"])
def test_only_the_first_of_two_minibatches_is_on_policy(mode):
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy))
    parts = [old_passes(policy, part, mode=mode) for part in (groups[:2], groups[2:])]
    first, second = (take_update(policy, part, groups=2, lr=0.1) for part in parts)
    assert factors(parts[0], first)["staleness/k3"] == 0.0
    assert factors(parts[0], first)["staleness/max"] == 1.0
    assert factors(parts[1], second)["staleness/k3"] > 1e-6


# ---- Routing Replay


def two_minibatches(mode: Replay, lr: float) -> tuple[float, float, list[list[OldPass]]]:
    """N=2 with a first update that moves routes; how far the θ_old pass and the second update took e^μ and `replayed`.

    Returns:
        Agreement of the θ_old pass with the rollout's routes; of the second update with the trainer's θ_old routes,
        or under R3 the rollout's; and the mini-batches.
    """
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy))
    with experts_used(policy) as used:
        parts = [old_passes(policy, part, mode=mode) for part in (groups[:2], groups[2:])]
    rollout = agreement(used, [s.micro.batch.routes for part in parts for s in part])
    own = [s.replayed for s in old_passes(policy, groups[2:], mode="R2")]
    take_update(policy, parts[0], groups=2, lr=lr)
    with experts_used(policy) as used:
        take_update(policy, parts[1], groups=2, lr=0.0)
    wanted = [s.micro.batch.routes for s in parts[1]] if mode == "R3" else own
    return rollout, agreement(used, wanted), parts


def test_without_replay_the_experts_change_between_engines_and_after_an_update():
    rollout, later, parts = two_minibatches("none", lr=0.5)
    assert 0.5 < rollout < 0.995
    assert later < 0.995
    assert all(s.replayed is None for part in parts for s in part)


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_the_trainer_does_not_check_again_what_was_checked_where_it_came_in(mode, monkeypatch):
    policy = tiny_policy()
    responses = rewarded_responses(roll_out(policy))
    monkeypatch.setattr(hooks, "check_ids", lambda *_: pytest.fail("the ids were checked again"))
    assert take_update(policy, old_passes(policy, responses, mode=mode), groups=4) is not None


def test_r2_replays_the_trainers_own_experts_of_the_old_pass():
    rollout, later, parts = two_minibatches("R2", lr=0.5)
    assert 0.5 < rollout < 0.995  # the θ_old pass routes by itself
    assert later == 1.0
    assert all(s.replayed is not None for part in parts for s in part)


def test_r3_replays_the_rollouts_experts_in_the_old_pass_and_in_the_updates():
    rollout, later, parts = two_minibatches("R3", lr=0.5)
    assert rollout == 1.0
    assert later == 1.0
    assert all(s.replayed is s.micro.batch.routes for part in parts for s in part)


def test_r3_brings_the_engines_closer():
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy, tokens=48))
    passes = {mode: old_passes(policy, groups, mode=mode) for mode in ("none", "R2", "R3")}
    found = {mode: factors(parts) for mode, parts in passes.items()}
    tokens = sum(r.sampled_tokens for group in groups for r in group)
    assert tokens > 200
    assert route_metrics(passes["none"])["routes/disagreement"] > 0.02
    assert found["R3"]["mismatch/k3"] < 0.8 * found["none"]["mismatch/k3"]
    assert found["R3"]["mismatch/abs_mean"] < 0.9 * found["none"]["mismatch/abs_mean"]
    assert found["R2"] == found["none"]  # R2 does not touch the mismatch


def test_equal_engines_do_not_disagree():
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy, precision="native"))
    passes = old_passes(policy, groups, mode="none")
    assert factors(passes)["mismatch/abs_max"] < 1e-4
    assert route_metrics(passes)["routes/disagreement"] == 0.0


def test_r3_refuses_a_rollout_without_routes():
    policy = tiny_policy()
    groups = [[replace(c, routes=None) for c in group] for group in roll_out(policy)]
    with pytest.raises(ValueError, match=r'update\.replay = "R3" needs the routes of the rollout'):
        old_passes(policy, rewarded_responses(groups), mode="R3")


@pytest.mark.parametrize("mode", ["R2", "R3"])
def test_recomputed_activations_take_the_replayed_experts_too(mode):
    found = []
    for recompute in (False, True):
        policy = tiny_policy()
        groups = rewarded_responses(roll_out(policy))
        if recompute:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.train()
        parts = [old_passes(policy, part, mode=mode) for part in (groups[:2], groups[2:])]
        take_update(policy, parts[0], groups=2, lr=0.5)
        with experts_used(policy) as used:
            take_update(policy, parts[1], groups=2)
        assert [len(calls) for calls in used] == [2 if recompute else 1] * 2
        assert agreement(used, [parts[1][0].replayed] * len(used[0])) == 1.0
        found.append(gradient(policy))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_a_dense_model_has_no_routes():
    policy = dense_policy()
    groups = rewarded_responses(roll_out(policy))
    passes = old_passes(policy, groups, mode="none")
    assert route_metrics(passes) == {}
    outcome = take_update(policy, passes, groups=4)
    assert outcome is not None
    assert outcome.finite


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mode", ["none", "R2", "R3"])
def test_the_first_update_may_be_its_own_old_pass_in_one_forward(mode, recompute):
    """Two forwards, the θ_old pass and the update's own, give the same gradient and the same facts."""
    found = []
    for together in (True, False):
        policy = tiny_policy()
        groups = rewarded_responses(roll_out(policy))
        if recompute:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.train()
        micros = pack([r for g in groups for r in g], micro_tokens=80, one_block=False)
        assert len(micros) > 1
        with experts_used(policy) as used:
            loss, how = partial(MiniRL(), responses=16, groups=4), {"replay": mode, "temperature": TEMPERATURE}
            if together:
                backwards = [partial(update_at_old, policy, micro, loss, **how) for micro in micros]
            else:
                passes = [old_pass(policy, micro, **how) for micro in micros]
                backwards = [partial(update_later, policy, old, loss, temperature=TEMPERATURE) for old in passes]
            optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.0)
            outcome = update(policy.model, optimizer, backwards, max_grad_norm=None)
        assert outcome is not None
        assert len(used[0]) == len(micros) * (1 + recompute + (not together))
        found.append(
            (
                outcome,
                gradient(policy),
                old_pass_metrics(micro_batches([outcome])),
                factors(micro_batches([outcome]), outcome),
            )
        )
    (one, grad, measured, moving), (two, *others) = found
    assert one.objective == two.objective
    torch.testing.assert_close(grad, others[0], atol=1e-6, rtol=1e-5)
    assert (measured, moving["staleness/max"], moving["weight/max"]) == (
        others[1],
        others[2]["staleness/max"],
        others[2]["weight/max"],
    )


# ---- what is measured


def test_the_gap_of_the_values_is_that_of_each_response():
    """Δ and its bound, written out response by response, on a second mini-batch cut into micro-batches."""
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy))
    first, second = (old_passes(policy, part, mode="R3", micro_tokens=80) for part in (groups[:2], groups[2:]))
    take_update(policy, first, groups=2, lr=0.1)
    outcome = take_update(policy, second, groups=2, lr=0.1)
    assert outcome is not None
    assert len(outcome.traces) > 1
    differences, bounds, advantages = [], [], []
    for trace in outcome.traces:
        micro = trace.old.micro
        for i in micro.response.unique():
            own = micro.response == i
            ratios = (trace.logprobs[own].double() - micro.rollout_logprobs[own].double()).exp().tolist()
            differences.append(1 + sum(r - 1 for r in ratios) - math.prod(ratios))
            bounds.append(sum(abs(r - 1) * abs(1 - math.prod(ratios[t + 1 :])) for t, r in enumerate(ratios)))
            advantages.append(float(micro.advantages[own][0]))
    metrics = update_metrics([outcome])
    n = len(differences)
    assert n == 8
    assert abs(metrics["surrogate/delta"]) > 1e-4
    values = [a * d for a, d in zip(advantages, differences, strict=True)]
    mean = sum(values) / n
    margin = 1.96 * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    bound = sum(abs(a) * b for a, b in zip(advantages, bounds, strict=True)) / n
    assert metrics["surrogate/delta"] == pytest.approx(mean, rel=1e-4)
    assert metrics["surrogate/delta_low"] == pytest.approx(mean - margin, rel=1e-4)
    assert metrics["surrogate/delta_high"] == pytest.approx(mean + margin, rel=1e-4)
    assert metrics["surrogate/delta_bound"] == pytest.approx(bound, rel=1e-4)
    assert metrics["surrogate/value_gap"] == pytest.approx(sum(map(abs, differences)) / n, rel=1e-4)


def test_the_error_of_the_surrogate_runs_over_all_responses_with_the_others_as_the_baseline():
    """A normalised Â and groups at rest: Δ is that of rewards, over every response of the step."""
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy), resting=(1, 3))
    groups = [[replace(r, excess=2.5 * r.advantage + 0.0) for r in group] for group in groups]
    groups = [[replace(r, advantage=r.advantage / 0.3) for r in group] for group in groups]
    first, second = (old_passes(policy, part, mode="R3", micro_tokens=80) for part in (groups[:2], groups[2:]))
    outcomes = [take_update(policy, part, groups=2, lr=0.1) for part in (first, second)]
    total = 0.0
    for trace in (trace for outcome in outcomes if outcome is not None for trace in outcome.traces):
        micro = trace.old.micro
        for i in micro.response.unique():
            own = micro.response == i
            ratios = (trace.logprobs[own].double() - micro.rollout_logprobs[own].double()).exp().tolist()
            total += float(micro.excess[own][0]) * (1 + sum(r - 1 for r in ratios) - math.prod(ratios))
    assert abs(total) > 1e-4
    metrics = update_metrics(outcomes, responses=16)
    assert metrics["surrogate/delta"] == pytest.approx(total / 16, rel=1e-4)
    assert metrics["surrogate/delta_low"] < metrics["surrogate/delta"] < metrics["surrogate/delta_high"]


def by_version(rows: list[ledger.Row], factor: str) -> dict[str, int]:
    wanted = (row for row in rows if (row["factor"], row["split"]) == (factor, "version"))
    return {str(row["bucket"]): int(row["tokens"]) for row in wanted}


@pytest.mark.parametrize("skipped", [False, True])
def test_a_lag_counts_the_updates_that_moved_the_weights(skipped):
    """Sampled at version 5 and trained at 7 or, by the later mini-batches, at one more for each update before them."""
    policy = tiny_policy()
    groups = [[replace(c, policy_version=5) for c in group] for group in roll_out(policy)]
    parts = [old_passes(policy, [part], mode="R3") for part in rewarded_responses(groups)]
    outcomes = [take_update(policy, part, groups=1, lr=0.01) for part in parts]
    if skipped:
        assert outcomes[0] is not None
        outcomes[0] = replace(outcomes[0], finite=False)
    outcomes[1] = None  # every advantage was zero
    rows = step_ledger([s for part in parts for s in part], outcomes, policy_version=7)
    sizes = [sum(len(s.old_logprobs) for s in part) for part in parts]
    assert by_version(rows, "mismatch") == {"2": sum(sizes)}
    lags = {0: 2, 2: 2, 3: 3} if skipped else {0: 2, 2: 3, 3: 4}
    expected: dict[str, int] = {}
    for part, lag in lags.items():
        bucket = "2" if lag < 4 else "4"
        expected[bucket] = expected.get(bucket, 0) + sizes[part]
    assert by_version(rows, "staleness") == by_version(rows, "product") == expected


def test_tokens_are_sorted_by_whether_their_own_position_was_routed_alike():
    """The experts of one response are changed where its third and fourth token are predicted, in one layer."""
    policy = tiny_policy()
    groups = roll_out(policy, precision="native")
    one = max(groups[0], key=lambda c: len(c.token_ids))
    assert one.routes is not None
    changed = one.routes.clone()
    for row in changed[len(PROMPTS[0]) + 1 : len(PROMPTS[0]) + 3, 1]:
        row[0] = next(e for e in range(8) if e not in row.tolist())
    unrouted = len(changed) - 1  # the last token's
    changed[unrouted] = 255
    groups[0] = [replace(c, routes=changed) if c is one else c for c in groups[0]]
    passes = old_passes(policy, rewarded_responses(groups), mode="none")
    rows = step_ledger(passes, [], policy_version=0)
    total = sum(len(c.token_ids) for group in groups for c in group)
    buckets = {row["bucket"]: row["tokens"] for row in rows if row["split"] == "routes"}
    assert buckets == {"agreed": total - 3, "differed": 2, "unrouted": 1}


# ---- one gradient step


@pytest.mark.parametrize("objective", [MiniRL(), MiniRL(length_norm=True), GRPO(), CISPO()], ids=type)
def test_the_gradient_does_not_depend_on_the_micro_batches(objective):
    found, counts = [], []
    for micro_tokens in (4096, 60, 24):
        policy = tiny_policy()
        groups = rewarded_responses(roll_out(policy), resting=[2])
        passes = old_passes(policy, groups, mode="R3", micro_tokens=micro_tokens)
        outcome = take_update(policy, passes, groups=4, objective=objective)
        assert outcome is not None
        counts.append(len(outcome.traces))
        found.append((gradient(policy), outcome.objective, outcome.grad_norm))
    assert counts[0] == 1
    assert counts[2] > counts[1] > 2
    for grad, value, norm in found[1:]:
        torch.testing.assert_close(grad, found[0][0], atol=1e-5, rtol=0.0)
        assert value == pytest.approx(found[0][1], abs=1e-5)
        assert norm == pytest.approx(found[0][2], rel=1e-4)
    assert found[0][2] == pytest.approx(float(found[0][0].norm()), rel=1e-4)


def test_the_gradient_is_that_of_the_objective_written_out():
    """∇J of eq. 7 on-policy without mismatch: the mean over responses of Σ_t min(π/μ, 5) Â ∇log π."""
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy))
    outcome = take_update(policy, old_passes(policy, groups, mode="none"), groups=4)
    found = gradient(policy)
    policy.model.zero_grad()
    total = torch.zeros(())
    for response in (r for group in groups for r in group):
        ids, prompt = torch.tensor([response.token_ids]), len(response.spans[0].token_ids)
        logits = policy.model(input_ids=ids).logits[0, prompt - 1 : -1] / TEMPERATURE
        chosen = ids[0, prompt:, None]
        logprobs = logits.log_softmax(dim=-1).gather(1, chosen).squeeze(1)
        weight = (logprobs.detach() - response.sampled[0].logprobs).exp().clamp(max=5.0)
        total = total + (weight * response.advantage * logprobs).sum() / 16
    (-total).backward()
    torch.testing.assert_close(found, gradient(policy), atol=1e-5, rtol=1e-3)
    assert outcome is not None
    assert outcome.objective == pytest.approx(float(total.detach()), abs=1e-4)


def test_responses_without_advantage_are_skipped_but_counted():
    """Two groups of four rest: half of the responses, so half the gradient of the other two alone."""
    found, forwards = [], []
    for resting, kept, groups in (([2, 3], slice(None), 4), ([], slice(2), 2)):
        policy = tiny_policy()
        batch = rewarded_responses(roll_out(policy), resting=resting)[kept]
        passes = old_passes(policy, batch, mode="R3")
        with experts_used(policy) as used:
            outcome = take_update(policy, passes, groups=groups)
        assert outcome is not None
        forwards.append(len(used[0]))
        found.append(gradient(policy))
    assert forwards == [1, 1]
    torch.testing.assert_close(2.0 * found[0], found[1], atol=1e-5, rtol=0.0)


def test_a_batch_of_equal_rewards_moves_nothing():
    policy = tiny_policy()
    groups = rewarded_responses(roll_out(policy), resting=[0, 1, 2, 3])
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1, weight_decay=0.1)
    before = weights(policy)
    passes = old_passes(policy, groups, mode="R3")
    outcome = take_update(policy, passes, groups=4, optimizer=optimizer)
    assert outcome is None
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert not optimizer.state
    metrics = update_metrics([outcome])
    assert metrics == {"update/objective": 0.0, "update/grad_norm": 0.0, "update/skipped": 0}
    assert factors(passes, outcome)["mismatch/k3"] > 0.0  # still measured


def test_the_gradient_is_scaled_down_to_its_limit():
    policy = tiny_policy()
    passes = old_passes(policy, rewarded_responses(roll_out(policy)), mode="R3")
    free = take_update(policy, passes, groups=4)
    assert free is not None
    limit = free.grad_norm / 3
    bounded = take_update(policy, passes, groups=4, max_grad_norm=limit)
    assert bounded is not None
    assert bounded.grad_norm == pytest.approx(free.grad_norm, rel=1e-5)
    assert float(gradient(policy).norm()) == pytest.approx(limit, rel=1e-3)


# ---- numbers that are none


def with_planted(groups: list[list[Completion]], value: float) -> list[list[Completion]]:
    """One log-probability of the rollout is `value`."""
    first = groups[0][0]
    logprobs = first.logprobs.clone()
    logprobs[0] = value
    return [[replace(first, logprobs=logprobs), *groups[0][1:]], *groups[1:]]


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_an_update_that_is_not_finite_is_skipped_and_counted(value):
    policy = tiny_policy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)  # too small a step for the clip to mask it
    healthy = roll_out(policy)
    good = old_passes(policy, rewarded_responses(healthy), mode="R3")
    bad = old_passes(policy, rewarded_responses(with_planted(healthy, value)), mode="R3")
    objective = MiniRL(weight_cap=None)
    one = take_update(policy, good, groups=4, optimizer=optimizer, objective=objective)
    before, moments = weights(policy), [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
    two = take_update(policy, bad, groups=4, optimizer=optimizer, objective=objective)
    assert one is not None
    assert two is not None
    assert (one.finite, two.finite) == (True, False)
    assert all(torch.equal(v, before[name]) for name, v in policy.model.state_dict().items())
    for then, now in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(then[k], now[k]) for k in then)
    metrics = update_metrics([one, two])
    assert metrics["update/skipped"] == 1
    assert metrics["update/objective"] == one.objective
    assert metrics["update/grad_norm"] == one.grad_norm
    three = take_update(policy, good, groups=4, optimizer=optimizer, objective=objective)
    assert three is not None
    assert three.finite  # nothing of the skipped gradient is left behind


def test_the_cap_and_the_limit_on_the_norm_do_not_hide_a_nan():
    policy = tiny_policy()
    bad = old_passes(policy, rewarded_responses(with_planted(roll_out(policy), math.nan)), mode="none")
    before = weights(policy)
    outcome = take_update(policy, bad, groups=4, lr=1.0, max_grad_norm=1.0)
    assert outcome is not None
    assert not outcome.finite
    assert all(torch.equal(v, before[name]) for name, v in policy.model.state_dict().items())


def test_what_is_left_to_be_measured_holds_no_graph():
    policy = tiny_policy()
    micros = pack([r for g in rewarded_responses(roll_out(policy)) for r in g], micro_tokens=4096, one_block=False)
    loss = partial(MiniRL(), responses=16, groups=4)
    first = update_at_old(policy, micros[0], loss, replay="R3", temperature=TEMPERATURE)
    later = update_later(policy, first.old, loss, temperature=TEMPERATURE)
    for trace in (first, later):
        kept = (trace.logprobs, trace.terms.surrogate, trace.old.old_logprobs)
        assert not any(tensor.requires_grad for tensor in kept)


def test_routes_that_are_not_known_differ_from_nothing():
    policy = tiny_policy()
    groups = [[replace(c, routes=None) for c in group] for group in roll_out(policy)]
    assert [old.differs for old in old_passes(policy, rewarded_responses(groups), mode="R2")] == [None]
