import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import dense_policy, family_policy, random_ids, response, tiny_policy
from steadyrl.errors import UserError
from steadyrl.model.loading import Policy
from steadyrl.model.packing import layout, pack_responses, pack_sequences
from steadyrl.model.scoring import score
from steadyrl.types import MicroBatch, Response, TokenBatch

CPU = torch.device("cpu")


def cells(rows: list[list[int]], lengths: list[int]) -> int:
    return len(rows) * max(sum(lengths[i] for i in row) for row in rows)


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(60, 500), st.booleans())
def test_layout_places_each_once_within_the_budget(lengths: list[int], micro_tokens: int, one_per_row: bool) -> None:
    micros = layout(lengths, micro_tokens=micro_tokens, one_per_row=one_per_row)
    assert sorted(i for rows in micros for row in rows for i in row) == list(range(len(lengths)))
    assert all(cells(rows, lengths) <= micro_tokens for rows in micros)
    if one_per_row:
        assert all(len(row) == 1 for rows in micros for row in rows)


def test_layout_of_nothing_and_of_too_much() -> None:
    assert layout([], micro_tokens=8, one_per_row=False) == []
    assert layout([8], micro_tokens=8, one_per_row=False) == [[[0]]]
    with pytest.raises(UserError, match=r"sequence 1 feeds 9 tokens, more than update.micro_tokens = 8"):
        layout([3, 9], micro_tokens=8, one_per_row=False)


MIXES = {
    "even": lambda r: r.randint(100, 130),
    "uniform": lambda r: r.randint(10, 200),
    "long tail": lambda r: min(400, 20 + int(r.expovariate(1 / 60))),
    "two kinds": lambda r: 30 + r.randint(0, 3) if r.random() < 0.7 else 250,
    "mostly cut off": lambda r: 200 if r.random() < 0.6 else r.randint(20, 200),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("micro_tokens", [2048, 8192])
def test_little_padding(mix, seed: int, micro_tokens: int) -> None:
    r = random.Random(seed)
    lengths = [mix(r) for _ in range(32 * (1 + seed))]
    micros = layout(lengths, micro_tokens=micro_tokens, one_per_row=False)
    assert sum(lengths) >= 0.9 * sum(cells(rows, lengths) for rows in micros)


def test_the_grid_by_hand() -> None:
    # 4 and 2 fed tokens in one row; a prompt of 2 answered by 3, a prompt of 1 answered by 2
    (batch,) = pack_sequences([(3, 4, 5, 6, 7), (8, 9, 10)], [2, 1], micro_tokens=6, one_per_row=False, device=CPU)
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch.predicting.tolist() == [
        1,
        2,
        3,
        4,
        5,
    ]  # the last token of the prompt predicts the first response token
    assert batch.targets.tolist() == [5, 6, 7, 9, 10]
    assert batch.fed_tokens == 6


def test_padding_is_a_sequence_of_its_own() -> None:
    # as the example of TokenBatch: 12 and 7 fed tokens beside a row of 20
    sequences = [tuple(range(3, 24)), tuple(range(3, 16)), tuple(range(20, 28))]
    (batch,) = pack_sequences(sequences, [1, 1, 1], micro_tokens=40, one_per_row=False, device=CPU)
    assert batch.position_ids.tolist() == [[*range(20)], [*range(12), *range(7), 0]]
    assert batch.input_ids[1].tolist() == [*range(3, 15), *range(20, 27), 0]
    assert batch.predicting.tolist() == list(range(39))
    assert batch.fed_tokens == 39


def some_responses(count: int, *, layers: int = 2, with_routes: bool = True) -> list[Response]:
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


def pack(responses: list[Response], *, micro_tokens: int = 64, one_per_row: bool = False) -> list[MicroBatch]:
    return pack_responses(responses, micro_tokens=micro_tokens, one_per_row=one_per_row, device=CPU)


@pytest.mark.parametrize("one_per_row", [False, True])
def test_facts_follow_their_tokens(one_per_row: bool) -> None:
    responses = some_responses(12)
    seen = []
    for micro in pack(responses, one_per_row=one_per_row):
        at = 0
        while at < len(micro.batch.targets):  # each response's first log-probability names it: −1 − 100·i
            i = int(-micro.rollout_logprobs[at].item() - 1) // 100
            own, count = responses[i], len(responses[i].completion.token_ids)
            part = slice(at, at + count)
            assert micro.batch.targets[part].tolist() == list(own.completion.token_ids)
            assert torch.equal(micro.rollout_logprobs[part], own.completion.logprobs)
            assert micro.advantages[part].tolist() == [own.advantage] * count
            assert micro.response_tokens[part].tolist() == [count] * count
            assert micro.group_tokens[part].tolist() == [own.group_tokens] * count
            assert micro.moves == (own.advantage != 0.0)
            seen.append(i)
            at += count
    assert sorted(seen) == list(range(12))


def test_routes_lie_at_the_rows_of_their_tokens() -> None:
    for micro in pack(some_responses(12), micro_tokens=48):
        batch = micro.batch
        assert batch.routes is not None
        assert batch.routes.shape == (*batch.input_ids.shape, 2, 2)
        padding = batch.routes == 255
        assert padding.sum() == 4 * (batch.input_ids.numel() - batch.fed_tokens)
        expected = (batch.position_ids % 8)[..., None, None].expand_as(batch.routes)
        assert torch.equal(batch.routes[~padding].long(), expected[~padding])


def test_routes_of_all_or_of_none() -> None:
    assert all(micro.batch.routes is None for micro in pack(some_responses(4, with_routes=False)))
    mixed = some_responses(4)
    mixed[1] = replace(mixed[1], completion=replace(mixed[1].completion, routes=None))
    with pytest.raises(ValueError, match="1 of 2 responses came without routes"):
        pack(mixed)


def test_rows_that_do_not_fit_their_tokens_are_refused() -> None:
    # a prompt of 3 answered by 2 feeds 4 positions
    for logprobs, rows, message in (
        (3, 4, "returned 3 log-probs for 2 sampled tokens"),
        (2, 5, "returned 5 rows of routes for 4 fed positions"),
        (2, 3, "returned 3 rows of routes for 4 fed positions"),
    ):
        routes = torch.zeros(rows, 2, 2, dtype=torch.uint8)
        with pytest.raises(UserError, match=message):
            pack([response((3, 4, 5), (6, 7), logprobs=torch.zeros(logprobs), routes=routes)])


def logprobs_by_response(policy: Policy, micros: list[MicroBatch]) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for micro in micros:
            ours, _ = score(policy.model, micro.batch, temperature=1.0)
            owner = (-micro.rollout_logprobs - 1).long() // 100
            found |= {int(i): ours[owner == i] for i in owner.unique()}
    return found


def furthest(policy: Policy, micros: list[MicroBatch], responses: list[Response]) -> float:
    """Largest difference from each response scored alone, by the model's own forward."""
    packed = logprobs_by_response(policy, micros)
    differences = []
    for i, r in enumerate(responses):
        ids = torch.tensor([[*r.prompt_ids, *r.completion.token_ids]])
        with torch.no_grad():
            everything = policy.model(input_ids=ids, use_cache=False).logits.log_softmax(dim=-1)[0, :-1]
        alone = everything.gather(1, ids[0, 1:, None]).squeeze(1)[len(r.prompt_ids) - 1 :]
        differences.append((packed[i] - alone).abs().max().item())
    return max(differences)


def hybrid_policy() -> Policy:
    return family_policy("qwen3_next")


@pytest.mark.parametrize(
    ("build", "one_per_row"),
    [(tiny_policy, False), (tiny_policy, True), (dense_policy, False), (dense_policy, True), (hybrid_policy, True)],
)
def test_packed_is_one_by_one(build, one_per_row: bool) -> None:
    policy, responses = build(), some_responses(12)
    micros = pack(responses, one_per_row=one_per_row)
    assert any(len(m.batch.input_ids) > 1 for m in micros)
    assert furthest(policy, micros, responses) < 1e-5


def test_a_recurrent_state_would_leak_within_a_row() -> None:
    assert furthest(hybrid_policy(), pack(some_responses(12)), some_responses(12)) > 0.1


def late(batch: TokenBatch) -> TokenBatch:
    return replace(batch, predicting=(batch.predicting + 1).clamp(max=batch.input_ids.numel() - 1))


def early(batch: TokenBatch) -> TokenBatch:
    return replace(batch, predicting=(batch.predicting - 1).clamp(min=0))


def rolled(batch: TokenBatch) -> TokenBatch:
    return replace(batch, targets=batch.targets.roll(1))


def joined(batch: TokenBatch) -> TokenBatch:
    return replace(batch, position_ids=torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids))


@pytest.mark.parametrize("fault", [late, early, rolled, joined])
def test_a_planted_shift_is_caught(fault) -> None:
    policy, responses = dense_policy(), some_responses(12)
    micros = [replace(micro, batch=fault(micro.batch)) for micro in pack(responses)]
    assert furthest(policy, micros, responses) > 0.1
