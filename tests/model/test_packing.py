import itertools
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import (
    dense_policy,
    family_policy,
    given_span,
    random_ids,
    response,
    sampled_span,
    tiny_policy,
    two_turns,
)
from steadyrl.errors import UserError
from steadyrl.model import packing
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import layout, pack, pack_sequences
from steadyrl.routing import replay
from steadyrl.types import MicroBatch, Sampled, Span, TokenBatch, Trajectory


def width(block: list[int], lengths: list[int]) -> int:
    return max(lengths[i] for i in block)


def cells(blocks: list[list[int]], lengths: list[int]) -> int:
    return sum(len(block) * width(block, lengths) for block in blocks)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(60, 500), st.booleans())
def test_layout_places_each_once_within_the_budget(lengths: list[int], micro_tokens: int, one_block: bool) -> None:
    micros = layout(lengths, micro_tokens=micro_tokens, one_block=one_block)
    assert sorted(i for blocks in micros for block in blocks for i in block) == list(range(len(lengths)))
    assert all(cells(blocks, lengths) <= micro_tokens for blocks in micros)
    assert all(lengths[block[0]] == width(block, lengths) for blocks in micros for block in blocks)
    if one_block:
        assert all(len(blocks) == 1 for blocks in micros)
    else:  # neighbours stay together: the last of a micro-batch comes before the first of the next
        spans = [[i for block in blocks for i in block] for blocks in micros]
        assert all(max(a) < min(b) for a, b in itertools.pairwise(spans))


def test_layout_of_nothing_and_of_too_much() -> None:
    assert layout([], micro_tokens=8, one_block=False) == []
    assert layout([8], micro_tokens=8, one_block=False) == [[[0]]]
    with pytest.raises(UserError, match=r"feeds 9 tokens, more than update.micro_tokens = 8; raise it"):
        layout([3, 9], micro_tokens=8, one_block=False)


MIXES = {
    "even": lambda r: r.randint(100, 130),
    "uniform": lambda r: r.randint(10, 200),
    "long tail": lambda r: min(400, 20 + int(r.expovariate(1 / 60))),
    "two kinds": lambda r: 30 + r.randint(0, 3) if r.random() < 0.7 else 250,
    "mostly cut off": lambda r: 200 if r.random() < 0.6 else r.randint(20, 200),
}


@pytest.mark.parametrize("one_block", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("micro_tokens", [2048, 8192])
def test_little_padding(mix, seed: int, micro_tokens: int, one_block: bool) -> None:
    r = random.Random(seed)
    lengths = [mix(r) for _ in range(32 * (1 + seed))]
    micros = layout(lengths, micro_tokens=micro_tokens, one_block=one_block)
    limit = 0.10 if one_block else 0.03
    for blocks in micros:
        assert sum(lengths[i] for block in blocks for i in block) >= (1.0 - limit) * cells(blocks, lengths)


def packed(trajectories: Sequence[Trajectory], *, micro_tokens: int = 64, one_block: bool = False) -> list[MicroBatch]:
    return pack(trajectories, micro_tokens=micro_tokens, one_block=one_block)


SHARING = [(3, 4, 5, 6, 7), (3, 4, 8, 9)]  # the example of TokenBatch: a prompt of 2, answered by 3 and by 2


def test_a_shared_prompt_by_hand() -> None:
    (batch,) = pack_sequences(SHARING, [2, 2], micro_tokens=9, one_block=False)
    assert batch.blocks == ((1, 4), (1, 3))  # one cell of eight would be padding: too much
    assert batch.input_ids.tolist() == [3, 4, 5, 6, 8]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert batch.cells.tolist() == [0, 1, 2, 3, 0, 1, 4]
    assert batch.home.tolist() == [0, 1, 2, 3, 6]
    assert batch.predicting.tolist() == [1, 2, 3, 1, 4]  # the prompt's last token predicts both first tokens
    assert batch.targets.tolist() == [5, 6, 7, 8, 9]
    assert batch.fed_tokens == 7


def test_padding_repeats_the_last_position_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(packing, "MAX_PADDING", 0.2)
    (batch,) = pack_sequences(SHARING, [2, 2], micro_tokens=10, one_block=False)
    assert batch.blocks == ((2, 4),)
    assert batch.cells.tolist() == [0, 1, 2, 3, 0, 1, 4, 4]
    assert batch.home.tolist() == [0, 1, 2, 3, 6]
    assert batch.predicting.tolist() == [1, 2, 3, 1, 4]
    assert batch.fed_tokens == 7


def test_a_lone_block_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(packing, "MAX_PADDING_ALONE", 0.2)
    (batch,) = pack_sequences(SHARING, [2, 2], micro_tokens=10, one_block=True)
    assert batch.blocks == ((2, 4),)
    assert batch.input_ids.tolist() == [3, 4, 5, 6, 3, 4, 8, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch.cells.tolist() == batch.home.tolist() == list(range(8))
    assert batch.predicting.tolist() == [1, 2, 3, 5, 6]
    assert batch.targets.tolist() == [5, 6, 7, 8, 9]
    assert batch.fed_tokens == 7


def group(count: int, *, prompt: int, first_routes: Sequence[int]) -> list[Trajectory]:
    """Responses of 3 tokens to one prompt, whose experts are told apart by `first_routes`."""
    routes = [torch.full((prompt + 2, 2, 2), 2 * first, dtype=torch.uint8) for first in first_routes]
    ids = random_ids(prompt, seed=0)
    return [
        response(ids, random_ids(3, seed=i), advantage=1.0, logprobs=torch.zeros(3), routes=routes[i])
        for i in range(count)
    ]


def test_a_prompt_is_computed_once_for_the_responses_that_routed_it_alike() -> None:
    (micro,) = packed(group(3, prompt=10, first_routes=[0, 0, 0]), micro_tokens=80)
    assert len(micro.batch.input_ids) == 10 + 3 * 2
    (micro,) = packed(group(3, prompt=10, first_routes=[0, 1, 0]), micro_tokens=80)
    assert len(micro.batch.input_ids) == 2 * 10 + 3 * 2
    assert micro.batch.routes is not None
    assert micro.batch.routes[:, 0, 0].tolist() == [0] * 12 + [2] * 12 + [0] * 2


def some_responses(count: int, *, layers: int = 2, with_routes: bool = True) -> list[Trajectory]:
    """Mixed lengths; every number tells which response and position it comes from."""
    r = random.Random(7)
    made = []
    for i in range(count):
        prompt, answer = random_ids(r.randint(1, 9), seed=2 * i), random_ids(r.randint(1, 12), seed=2 * i + 1)
        fed = len(prompt) + len(answer) - 1
        experts = torch.arange(fed)[:, None, None] % 8 * torch.ones(layers, 2)
        made.append(
            response(
                prompt,
                answer,
                advantage=(0.0, 0.5, -0.5)[i % 3] * (i + 1),
                logprobs=-torch.arange(1.0, 1 + len(answer)) - 100 * i,
                routes=experts.to(torch.uint8) if with_routes else None,
                group_tokens=50 + i,
            )
        )
    return made


@pytest.mark.parametrize("one_block", [False, True])
def test_facts_follow_their_tokens(one_block: bool) -> None:
    responses = some_responses(12)
    seen = []
    for micro in packed(responses, one_block=one_block):
        at = 0
        while at < len(micro.batch.targets):  # each response's first log-probability names it: −1 − 100·i
            i = int(-micro.rollout_logprobs[at].item() - 1) // 100
            own, count = responses[i], responses[i].sampled_tokens
            part = slice(at, at + count)
            assert micro.batch.targets[part].tolist() == list(own.sampled[0].token_ids)
            assert torch.equal(micro.rollout_logprobs[part], own.sampled[0].logprobs)
            assert micro.advantages[part].tolist() == [own.advantage] * count
            assert micro.response_tokens[part].tolist() == [count] * count
            assert micro.group_tokens[part].tolist() == [own.group_tokens] * count
            assert micro.moves == (own.advantage != 0.0)
            seen.append(i)
            at += count
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("one_block", [False, True])
def test_routes_lie_at_the_rows_of_their_tokens(one_block: bool) -> None:
    for micro in packed(some_responses(12), micro_tokens=48, one_block=one_block):
        batch = micro.batch
        assert batch.routes is not None
        assert batch.routes.shape == (*batch.input_ids.shape, 2, 2)
        padding = batch.routes == 255
        assert padding.sum() == (4 * (len(batch.cells) - batch.fed_tokens) if one_block else 0)
        expected = (batch.position_ids % 8)[..., None, None].expand_as(batch.routes)
        assert torch.equal(batch.routes[~padding].long(), expected[~padding])


def test_routes_of_all_or_of_none() -> None:
    assert all(micro.batch.routes is None for micro in packed(some_responses(4, with_routes=False)))
    mixed = some_responses(4)
    mixed[1] = replace(mixed[1], routes=None)
    with pytest.raises(ValueError, match="some trajectories came with routes and some without"):
        packed(mixed)


def logprobs_by_response(policy: Policy, micros: list[MicroBatch]) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for micro in micros:
            ours, _ = response_logprobs(policy.model, micro.batch, temperature=1.0)
            owner = (-micro.rollout_logprobs - 1).long() // 100
            found |= {int(i): ours[owner == i] for i in owner.unique()}
    return found


def furthest(policy: Policy, micros: list[MicroBatch], responses: list[Trajectory]) -> float:
    """Largest difference from each response computed alone, by the model's own forward."""
    together = logprobs_by_response(policy, micros)
    differences = []
    for i, r in enumerate(responses):
        ids = torch.tensor([r.token_ids])
        with torch.no_grad():
            everything = policy.model(input_ids=ids, use_cache=False).logits.log_softmax(dim=-1)[0, :-1]
        alone = everything.gather(1, ids[0, 1:, None]).squeeze(1)[len(r.spans[0].token_ids) - 1 :]
        differences.append((together[i] - alone).abs().max().item())
    return max(differences)


def hybrid_policy() -> Policy:
    return family_policy("qwen3_next")


@pytest.mark.parametrize("build", [tiny_policy, dense_policy, hybrid_policy])
def test_packed_is_one_by_one(build) -> None:
    policy, responses = build(), some_responses(12)
    micros = packed(responses, one_block=policy.one_block)
    assert any(sequences > 1 for m in micros for sequences, _ in m.batch.blocks)
    assert policy.one_block or any(len(m.batch.blocks) > 1 for m in micros)
    assert furthest(policy, micros, responses) < 1e-5


def test_sharing_a_prompt_changes_no_logprob_and_no_gradient() -> None:
    """Against the same responses, each in a micro-batch of its own."""
    policy = tiny_policy()
    responses = [
        response(random_ids(9, seed=0), random_ids(n, seed=n), logprobs=torch.full((n,), -1.0 - 100 * i))
        for i, n in enumerate((5, 8, 3, 8))
    ]
    weights = {n: torch.linspace(-1, 1, n) for n in (5, 8, 3)}

    def gradients(micros: list[MicroBatch]) -> list[torch.Tensor]:
        policy.model.zero_grad()
        for micro in micros:
            logprobs, _ = response_logprobs(policy.model, micro.batch, temperature=1.0)
            owner = (-micro.rollout_logprobs - 1).long() // 100
            for i in owner.unique():
                own = logprobs[owner == i]
                (own * weights[len(own)]).sum().backward(retain_graph=True)
        return [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]

    together, apart = packed(responses), [m for r in responses for m in packed([r])]
    assert [len(m.batch.input_ids) for m in together] == [9 + 4 + 7 + 2 + 7]
    assert furthest(policy, together, responses) < 1e-5
    for a, b in zip(gradients(together), gradients(apart), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_model_of_one_block_refuses_more() -> None:
    micros = packed(some_responses(12), micro_tokens=200)
    with pytest.raises(ValueError, match="too many values to unpack"):
        furthest(hybrid_policy(), micros, some_responses(12))


def late(batch: TokenBatch) -> TokenBatch:
    return replace(batch, predicting=(batch.predicting + 1).clamp(max=batch.input_ids.numel() - 1))


def early(batch: TokenBatch) -> TokenBatch:
    return replace(batch, predicting=(batch.predicting - 1).clamp(min=0))


def rolled(batch: TokenBatch) -> TokenBatch:
    return replace(batch, targets=batch.targets.roll(1))


def shifted_positions(batch: TokenBatch) -> TokenBatch:
    return replace(batch, position_ids=batch.position_ids.roll(1))


def leaking(batch: TokenBatch) -> TokenBatch:
    return replace(batch, blocks=((1, len(batch.cells)),))


def mixed_up(batch: TokenBatch) -> TokenBatch:
    return replace(batch, home=batch.home.roll(1))


@pytest.mark.parametrize("fault", [late, early, rolled, shifted_positions, leaking, mixed_up])
def test_a_planted_fault_is_caught(fault) -> None:
    policy, responses = dense_policy(), some_responses(12)
    micros = [replace(micro, batch=fault(micro.batch)) for micro in packed(responses)]
    assert furthest(policy, micros, responses) > 0.05


# ---- several turns


def test_two_turns_by_hand() -> None:
    """The example of `Trajectory`, beside a single turn that begins with the same prompt."""
    single = response((3, 4), (9,), advantage=-2.0, logprobs=torch.tensor([-7.0]), group_tokens=4, policy_version=5)
    (micro,) = packed([two_turns(), single])
    batch = micro.batch
    assert batch.blocks == ((1, 5), (1, 2))
    assert batch.input_ids.tolist() == [3, 4, 5, 6, 7]  # the single turn feeds the shared prompt only
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4]
    assert batch.cells.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert batch.home.tolist() == [0, 1, 2, 3, 4]
    assert batch.predicting.tolist() == [1, 2, 4, 1]
    assert batch.targets.tolist() == [5, 6, 8, 9]  # 7 was given
    assert micro.rollout_logprobs.tolist() == [-1.0, -2.0, -1.0, -7.0]
    assert micro.advantages.tolist() == [1.0, 1.0, 1.0, -2.0]
    assert micro.response_tokens.tolist() == [3.0, 3.0, 3.0, 1.0]
    assert micro.group_tokens.tolist() == [10.0, 10.0, 10.0, 4.0]
    assert micro.response.tolist() == [0, 0, 0, 1]
    assert micro.policy_version.tolist() == [1, 1, 2, 5]


def test_a_prompt_that_is_fed_whole_by_another_is_padded_with_its_own_last_position(monkeypatch) -> None:
    """A single sampled token has no position behind the prompt that it shares."""
    monkeypatch.setattr(packing, "MAX_PADDING", 0.5)
    (micro,) = packed([two_turns(), response((3, 4), (9,))])
    assert micro.batch.blocks == ((2, 5),)
    assert micro.batch.cells.tolist() == [0, 1, 2, 3, 4, 0, 1, 1, 1, 1]


spans_after_the_prompt = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), min_size=0, max_size=4)
shapes = st.lists(
    st.tuples(st.integers(0, 1), spans_after_the_prompt, st.integers(1, 4), st.integers(0, 1)), min_size=1, max_size=5
)


def trajectories(shapes: Sequence[tuple[int, list[tuple[bool, int]], int, int]]) -> list[Trajectory]:
    """One for each (prompt, spans behind it, tokens of the last span, routes): some begin alike, some routed alike."""
    found = []
    for number, (prompt, between, last, seed) in enumerate(shapes):
        spans: list[Span] = [given_span(*random_ids(3 + prompt, seed=prompt))]
        for place, (chosen, count) in enumerate([*between, (True, last)]):
            ids = random_ids(count, seed=100 * number + place)
            spans.append(sampled_span(*ids) if chosen else given_span(*ids))
        fed = sum(len(span.token_ids) for span in spans) - 1
        experts = torch.rand(fed, 2, 8, generator=torch.Generator().manual_seed(seed))
        routes = experts.argsort(dim=-1)[..., :2].to(torch.uint8)
        found.append(Trajectory(spans=tuple(spans), routes=routes, advantage=1.0 + number, group_tokens=1))
    return found


def gradients(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def one_by_one(policy: Policy, trajectories: Sequence[Trajectory], *, replayed: bool) -> torch.Tensor:
    """The gradient of Σ Â · log π over sampled tokens, from plain forwards of transformers."""
    policy.model.zero_grad(set_to_none=False)
    for one in trajectories:
        ids, at = torch.tensor([one.token_ids]), 0
        assert one.routes is not None
        with replay(policy.model, one.routes) if replayed else nullcontext():
            logprobs = policy.model(input_ids=ids[:, :-1], use_cache=False).logits[0].log_softmax(dim=-1)
            total = torch.zeros(())
            for span in one.spans:
                for index in range(at, at + len(span.token_ids)) if isinstance(span, Sampled) else ():
                    total = total + one.advantage * logprobs[index - 1, ids[0, index]]
                at += len(span.token_ids)
            total.backward()
    return gradients(policy)


def all_packed(policy: Policy, micros: Sequence[MicroBatch], *, replayed: bool) -> torch.Tensor:
    policy.model.zero_grad(set_to_none=False)
    for micro in micros:
        assert micro.batch.routes is not None
        with replay(policy.model, micro.batch.routes) if replayed else nullcontext():
            logprobs, _ = response_logprobs(policy.model, micro.batch, temperature=1.0)
            (micro.advantages * logprobs).sum().backward()
    return gradients(policy)


@pytest.mark.parametrize(("build", "replayed"), [(tiny_policy, True), (hybrid_policy, False)])
def test_packed_gradients_of_any_spans_are_those_of_one_by_one(build, replayed: bool) -> None:
    policy = build()

    @settings(deadline=None, max_examples=15)
    @given(shapes, st.integers(24, 64))
    def check(shapes: list[tuple[int, list[tuple[bool, int]], int, int]], micro_tokens: int) -> None:
        some = trajectories(shapes)
        micros = packed(some, micro_tokens=micro_tokens, one_block=policy.one_block)
        found, expected = (
            all_packed(policy, micros, replayed=replayed),
            one_by_one(policy, some, replayed=replayed),
        )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)

    check()


def test_the_limits_may_be_reached_exactly() -> None:
    """97 of 100 cells are the tokens that a micro-batch may hold, and 3% is the padding of a block."""
    assert layout([50, 47], micro_tokens=100, one_block=False) == [[[0, 1]]]


def test_each_sequence_needs_the_length_of_its_prompt() -> None:
    with pytest.raises(ValueError, match="shorter"):
        pack_sequences([[3, 4, 5], [3, 4]], [1], micro_tokens=8, one_block=False)
