"""Training on trajectories of two turns under R3: given, sampled, given, sampled."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from builders import given_span, random_ids, tiny_policy
from steadyrl.algo import MiniRL
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.measure.step import step_ledger
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack
from steadyrl.routing import replay
from steadyrl.training.forward import OldPass, old_pass, update_at_old
from steadyrl.training.step import GradientStep, update
from steadyrl.types import Completion, Sampled, Sampling, Trajectory

TEMPERATURE = 0.8
LR = 0.05


def play(policy: Policy) -> list[Trajectory]:
    """Six games: what the engine says, a tool's answer, and what the engine says then, one version later."""
    engine = LocalEngine(policy.model, end_tokens=set(), precision="fp8")
    prompts = [random_ids(5, seed=n // 3) for n in range(6)]  # two groups of three

    def said(inputs: list[tuple[int, ...]], tokens: int, *, version: int) -> list[Completion]:
        engine.update_weights(policy.model.named_parameters(), version=version)
        sampling = Sampling(temperature=TEMPERATURE, max_new_tokens=tokens)
        return [one for (one,) in generate(engine, inputs, responses=1, sampling=sampling, seed=version)]

    first = said(prompts, 4, version=1)
    tools = [given_span(*random_ids(3, seed=10 + n)) for n in range(6)]
    seen = [(*p, *c.token_ids, *t.token_ids) for p, c, t in zip(prompts, first, tools, strict=True)]
    second = said(seen, 5, version=2)  # its routes are those of every token before it, too
    games = zip(prompts, first, tools, second, strict=True)
    return [
        Trajectory(
            spans=(given_span(*prompt), one, tool, two),
            routes=two.routes,
            advantage=(-1.0, 0.25, 0.75)[n % 3],
            group_tokens=3 * 9,
        )
        for n, (prompt, one, tool, two) in enumerate(games)
    ]


def train(policy: Policy, trajectories: list[Trajectory], *, lr: float = LR) -> GradientStep:
    """One step on all of them."""
    micros = pack(trajectories, micro_tokens=64, one_block=policy.one_block)
    assert len(micros) > 1
    loss, how = partial(MiniRL(), responses=6, groups=2), {"replay": "R3", "temperature": TEMPERATURE}
    backwards = [partial(update_at_old, policy, micro, loss, **how) for micro in micros]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=lr)
    outcome = update(policy.model, optimizer, backwards, max_grad_norm=None)
    assert outcome is not None
    return outcome


def plain(policy: Policy, trajectories: list[Trajectory]) -> Tensor:
    """The gradient of eq. 7 at θ_old, sequence by sequence, with plain forwards of transformers."""
    policy.model.zero_grad()
    for one in trajectories:
        ids, at = torch.tensor([one.token_ids]), 0
        assert one.routes is not None
        with replay(policy.model, one.routes):
            logits = policy.model(input_ids=ids[:, :-1], use_cache=False).logits[0] / TEMPERATURE
            logprobs = logits.log_softmax(dim=-1)
            value = torch.zeros(())
            for span in one.spans:
                for index, token in enumerate(span.token_ids):
                    if isinstance(span, Sampled):
                        ours = logprobs[at + index - 1, token]
                        weight = (ours.detach() - span.logprobs[index]).exp().clamp(max=5.0)
                        value = value + weight * one.advantage * ours / len(trajectories)
                at += len(span.token_ids)
            (-value).backward()
    return gradient(policy)


def passes(policy: Policy, trajectories: list[Trajectory]) -> list[OldPass]:
    micros = pack(trajectories, micro_tokens=64, one_block=policy.one_block)
    return [old_pass(policy, micro, replay="R3", temperature=TEMPERATURE) for micro in micros]


def gradient(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def test_two_turns_are_trained_as_a_plain_computation_would() -> None:
    policy = tiny_policy()
    games = play(policy)
    assert all(game.fed == 5 + 4 + 3 + 5 - 1 == len(game.routes) for game in games)
    expected = plain(policy, games)
    before = torch.cat([p.detach().flatten().clone() for p in policy.model.parameters()])
    outcome = train(policy, games)
    assert outcome.finite
    torch.testing.assert_close(gradient(policy), expected, atol=1e-5, rtol=1e-3)
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    torch.testing.assert_close(before - after, LR * expected, atol=1e-6, rtol=1e-3)


def test_given_tokens_have_no_term() -> None:
    games = play(tiny_policy())
    wanted = [[token for span in game.sampled for token in span.token_ids] for game in games]
    for micro in pack(games, micro_tokens=64, one_block=False):
        assert micro.response_tokens.unique().tolist() == [9.0]
        assert all(micro.batch.targets[micro.response == n].tolist() in wanted for n in micro.response.unique())


def test_the_routes_of_both_turns_are_at_their_positions() -> None:
    """Replay brings the trainer near the engine; the same routes one position later do not."""
    policy = tiny_policy()
    games = play(policy)
    late = [replace(game, routes=game.routes.roll(1, dims=0)) for game in games if game.routes is not None]
    near, far = (
        torch.cat([(one.old_logprobs - one.micro.rollout_logprobs).abs() for one in passes(policy, some)]).mean()
        for some in (games, late)
    )
    assert near < 0.5 * far


def test_each_turn_has_the_lag_of_its_own_version() -> None:
    policy = tiny_policy()
    rows = step_ledger(passes(policy, play(policy)), [], policy_version=2)
    found = {row["bucket"]: row["tokens"] for row in rows if row["split"] == "version"}
    assert found == {"0": 6 * 5, "1": 6 * 4}
