import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders import FAMILIES, dense_policy, family_policy, random_ids, tiny_policy
from steadyrl.algo.ledger import routes_differ
from steadyrl.engine import wave
from steadyrl.engine.base import EngineError, Request, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.sampling import sample
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_sequences
from steadyrl.routing import record
from steadyrl.types import Completion, Routes, Sampling

PROMPTS = [random_ids(n, seed=n) for n in (7, 1, 12, 3, 7)]  # mixed lengths, one of a single token
ENDS = {1, 10, 20, 30}  # four of 45 tokens, so that responses end at different times
WARM = Sampling(temperature=0.7, max_new_tokens=16)

Answers = list[list[Completion]]


def sampled(policy: Policy, *, sampling: Sampling = WARM, responses: int = 3, seed: int = 0, **options) -> Answers:
    engine = LocalEngine(policy.model, end_tokens=ENDS, **options)
    return generate(engine, PROMPTS, responses=responses, sampling=sampling, seed=seed)


def flat(answers: Answers) -> list[Completion]:
    return [completion for group in answers for completion in group]


def tokens(answers: Answers) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in flat(answers)]


@torch.no_grad()
def trained(policy: Policy, prompt: tuple[int, ...], completion: Completion) -> tuple[Tensor, Routes | None]:
    """Log-probabilities and routes as the trainer computes them for this one sequence."""
    sequence = (*prompt, *completion.token_ids)
    (batch,) = pack_sequences([sequence], [len(prompt)], micro_tokens=64, one_block=False)
    with record(policy.model) as recorder:
        logprobs, _ = response_logprobs(policy.model, batch, temperature=WARM.temperature)
    return logprobs, recorder.routes() if completion.routes is not None else None


def furthest(policy: Policy, answers: Answers) -> tuple[float, float]:
    """Largest difference of a log-probability, and largest share of layers routed differently, from the trainer."""
    differences, disagreements = [0.0], [0.0]
    for prompt, group in zip(PROMPTS, answers, strict=True):
        for completion in group:
            logprobs, routes = trained(policy, prompt, completion)
            differences.append((logprobs - completion.logprobs).abs().max().item())
            if routes is not None and completion.routes is not None:
                assert completion.routes.shape == routes.shape  # every fed position, the prompt's included
                disagreements.append(routes_differ(completion.routes, routes).float().mean(dim=-1).max().item())
    return torch.tensor(differences).max().item(), torch.tensor(disagreements).max().item()  # NaN if one is


SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@pytest.mark.parametrize("policy", [tiny_policy(), dense_policy(), dense_policy(**SLIDING)])
def test_greedy_is_transformers_generate(policy: Policy) -> None:
    answers = sampled(policy, sampling=Sampling(temperature=0.0, max_new_tokens=16), responses=2)
    plain = copy.deepcopy(policy.model)
    plain.set_attn_implementation("eager")  # nothing of ours
    for prompt, group in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": sorted(ENDS), "pad_token_id": 0}
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert [c.token_ids for c in group] == [tuple(expected[0, len(prompt) :].tolist())] * 2
        assert not any(c.logprobs.any() for c in group)  # a certainty


@pytest.mark.parametrize("name", [*FAMILIES, "dense", "sliding"])
def test_sampled_as_the_trainer_sees_it(name: str) -> None:
    others = {"dense": {}, "sliding": SLIDING}
    policy = dense_policy(**others[name]) if name in others else family_policy(name)
    difference, disagreement = furthest(policy, sampled(policy))
    assert difference < 1e-4
    assert disagreement == 0.0


def test_bfloat16_is_near_the_trainer() -> None:
    policy = dense_policy(dtype=torch.bfloat16)
    assert 0 < furthest(policy, sampled(policy))[0] < 0.2


def test_more_experts_than_a_byte_counts() -> None:
    policy = tiny_policy(num_experts=300, num_experts_per_tok=4)
    answers = sampled(policy)
    assert {c.routes.dtype for c in flat(answers) if c.routes is not None} == {torch.uint16}
    assert furthest(policy, answers)[1] == 0.0


def test_a_planted_shift_is_caught() -> None:
    policy = tiny_policy()
    answers = sampled(policy)
    late = [[replace(c, logprobs=c.logprobs.roll(1)) for c in group] for group in answers]
    assert furthest(policy, late)[0] > 0.1
    moved = [
        [replace(c, routes=c.routes.roll(1, dims=0)) for c in group] for group in answers if group[0].routes is not None
    ]
    assert furthest(policy, moved)[1] > 0.1


def test_how_a_response_ends() -> None:
    answers = flat(sampled(tiny_policy(), responses=8))
    for completion in answers:
        ids = completion.token_ids
        assert len(completion.logprobs) == len(ids)
        assert not set(ids[:-1]) & ENDS
        assert completion.finish_reason == ("stop" if ids[-1] in ENDS else "length")
        assert len(ids) == 16 or completion.finish_reason == "stop"
    assert {c.finish_reason for c in answers} == {"stop", "length"}
    assert len({len(c.token_ids) for c in answers}) > 5


def test_a_single_new_token() -> None:
    policy = tiny_policy()
    answers = sampled(policy, sampling=replace(WARM, max_new_tokens=1))
    assert all(len(c.token_ids) == 1 for c in flat(answers))
    for prompt, group in zip(PROMPTS, answers, strict=True):
        assert all(c.routes is not None and len(c.routes) == len(prompt) for c in group)
    assert max(furthest(policy, answers)) < 1e-4


def same(one: Answers, two: Answers, *, atol: float) -> bool:
    """The same tokens, routes and, within `atol`, log-probabilities."""
    pairs = list(zip(flat(one), flat(two), strict=True))
    return tokens(one) == tokens(two) and all(
        torch.allclose(a.logprobs, b.logprobs, atol=atol, rtol=0)
        and a.routes is not None
        and b.routes is not None
        and torch.equal(a.routes, b.routes)
        for a, b in pairs
    )


def test_the_seed_decides() -> None:
    policy = tiny_policy()
    assert same(sampled(policy, seed=5), sampled(policy, seed=5), atol=0)
    assert tokens(sampled(policy, seed=5)) != tokens(sampled(policy, seed=6))


def test_responses_to_one_prompt_differ() -> None:
    (group,) = generate(
        LocalEngine(tiny_policy().model, end_tokens=set()), [(5, 6)], responses=8, sampling=WARM, seed=0
    )
    assert len({c.token_ids for c in group}) == 8


@pytest.mark.parametrize("max_sequences", [1, 2, 5, 12])  # fewer than one prompt's 5 responses, exactly, and more
def test_who_is_decoded_beside_does_not_matter(max_sequences: int) -> None:
    policy = tiny_policy()
    few = sampled(policy, responses=5, max_sequences=max_sequences)
    assert same(few, sampled(policy, responses=5, max_sequences=256), atol=1e-5)


@pytest.mark.parametrize("below", [0.0, 0.5, 1.0])  # never, sometimes, whenever one has ended
def test_dropping_the_ended_does_not_matter(below: float, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    expected = sampled(policy, responses=5)
    monkeypatch.setattr(wave, "COMPACT_BELOW", below)
    assert same(sampled(policy, responses=5), expected, atol=1e-5)


def test_weights_are_taken_over() -> None:
    first, second = tiny_policy(0), tiny_policy(1)
    engine = LocalEngine(first.model, end_tokens=ENDS)
    before = generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0)
    assert (engine.policy_version, {c.policy_version for c in flat(before)}) == (0, {0})
    engine.update_weights(second.model.named_parameters(), version=7)
    after = generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0)
    assert (engine.policy_version, {c.policy_version for c in flat(after)}) == (7, {7})
    assert furthest(first, before)[0] < 1e-4
    assert furthest(second, after)[0] < 1e-4
    assert furthest(first, after)[0] > 0.1


def test_the_engine_holds_a_copy() -> None:
    policy = tiny_policy()
    engine = LocalEngine(policy.model, end_tokens=ENDS)
    before = generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert same(generate(engine, PROMPTS, responses=2, sampling=WARM, seed=0), before, atol=0)


FAULTS = {
    "missing": (lambda name, tensor: [], "lacks 1 of .* parameters, such as .*lm_head"),
    "unknown": (lambda name, tensor: [(name, tensor), ("lm_head.bias", tensor)], "lm_head.bias is no weight of the"),
    "twice": (lambda name, tensor: [(name, tensor)] * 2, "lm_head.weight came twice"),
    "shape": (lambda name, tensor: [(name, tensor[:, 1:])], r"lm_head.weight has shape \(45, 15\), the engine's is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_broken_update_nothing_is_sampled_until_a_whole_one(fault: str) -> None:
    engine, other = LocalEngine(tiny_policy(0, hidden_size=16).model, end_tokens=ENDS), tiny_policy(1, hidden_size=16)
    change, message = FAULTS[fault]
    *others, last = other.model.named_parameters()
    assert last[0] == "lm_head.weight"
    with pytest.raises(EngineError, match=message):
        engine.update_weights([*others, *change(*last)], version=1)
    assert engine.policy_version == 0
    with pytest.raises(EngineError, match="the engine holds no whole weights: the last update failed"):
        generate(engine, PROMPTS, responses=1, sampling=WARM, seed=0)
    engine.update_weights(other.model.named_parameters(), version=2)
    assert engine.policy_version == 2
    assert furthest(other, generate(engine, PROMPTS, responses=1, sampling=WARM, seed=0))[0] < 1e-4


def test_an_update_takes_one_tensor_after_the_other() -> None:
    engine, other = LocalEngine(tiny_policy(0).model, end_tokens=ENDS), tiny_policy(1)

    def gathered():  # as from a sharded trainer: each tensor is gone once the next one is asked for
        for name, parameter in other.model.named_parameters():
            tensor = parameter.detach().clone()
            yield name, tensor
            tensor.fill_(torch.nan)

    engine.update_weights(gathered(), version=1)
    assert furthest(other, generate(engine, PROMPTS, responses=1, sampling=WARM, seed=0))[0] < 1e-4


def requests(*places: int, responses: int = 3, sampling: Sampling = WARM, seed: int = 0) -> list[Request]:
    return [
        Request(token_ids=PROMPTS[place], responses=responses, sampling=sampling, seed=seed, place=place)
        for place in places
    ]


def collected(engine: LocalEngine, asked: list[Request]) -> dict[int, tuple[Completion, ...]]:
    engine.submit(asked)
    return {answer.place: answer.completions for answer in engine.collect()}


@pytest.mark.parametrize("places", [(0,), (3, 1), (4, 2, 0)])
def test_an_answer_does_not_depend_on_what_else_is_asked(places: tuple[int, ...]) -> None:
    """The tokens and routes are the same; sums of another batch may move the last bits of a log-probability."""
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    every = collected(engine, requests(0, 1, 2, 3, 4))
    some = collected(engine, requests(*places))
    assert sorted(some) == sorted(places)
    assert same([list(some[place]) for place in places], [list(every[place]) for place in places], atol=1e-5)


def test_requests_of_different_kinds_are_answered_as_if_alone() -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    kinds = [
        requests(0, 4),
        requests(1, responses=2),
        requests(2, seed=7),
        requests(3, sampling=replace(WARM, max_new_tokens=5)),
    ]
    together = collected(engine, [request for kind in kinds for request in kind])
    alone = {place: found for kind in kinds for place, found in collected(engine, kind).items()}
    assert {place: [c.token_ids for c in found] for place, found in together.items()} == {
        place: [c.token_ids for c in found] for place, found in alone.items()
    }


def test_answers_come_wave_by_wave_the_shortest_prompts_first(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, waves = LocalEngine(tiny_policy().model, end_tokens=ENDS, max_sequences=6), []
    decode = engine._decode
    monkeypatch.setattr(
        engine, "_decode", lambda prompts, *rest, **more: waves.append(len(prompts)) or decode(prompts, *rest, **more)
    )
    engine.submit(requests(0, 1, 2))
    found = engine.collect()
    assert [next(found).place, next(found).place, waves] == [1, 0, [2]]
    engine.submit(requests(3, 4))  # more may come while answers are collected
    assert [answer.place for answer in found] == [3, 4, 2]
    assert waves == [2, 2, 1]


def test_an_iterator_that_is_closed_drops_the_requests_without_an_answer() -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS, max_sequences=3)
    engine.submit(requests(0, 1))
    found = engine.collect()
    next(found)
    with pytest.raises(EngineError, match="1 requests wait for their answers: collect them before you update"):
        engine.update_weights({}.items(), version=1)
    found.close()
    assert list(engine.collect()) == []
    assert sorted(collected(engine, requests(0, 1))) == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"place": 0}, "place 0 is taken"),
        ({"place": -1}, "place = -1 must be at least 0"),
        ({"responses": 0}, "responses = 0 at least 1"),
        ({"token_ids": ()}, "prompt 1 is empty"),
    ],
)
def test_of_requests_with_a_wrong_one_none_is_taken(wrong: dict, message: str) -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    first, second = requests(0, 1)
    with pytest.raises(EngineError, match=message):
        engine.submit([first, replace(second, **wrong)])
    assert list(engine.collect()) == []


def test_sleeping_changes_nothing() -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    before = generate(engine, PROMPTS, responses=1, sampling=WARM, seed=0)
    engine.sleep()
    engine.wake()
    assert same(generate(engine, PROMPTS, responses=1, sampling=WARM, seed=0), before, atol=0)
    engine.submit(requests(0))
    with pytest.raises(EngineError, match="1 requests wait for their answers: collect them before you let the engine"):
        engine.sleep()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "prompt 1 is empty"),
        ((3, 45), "prompt 1 holds a token id outside the vocabulary of 45"),
        ((-1,), "prompt 1 holds a token id outside the vocabulary of 45"),
        ((3,) * 113, "prompt 1 has 113 tokens; with max_new_tokens = 16 it exceeds the model's context of 128"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_named(prompt: tuple[int, ...], message: str) -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    with pytest.raises(EngineError, match=message) as caught:
        generate(engine, [(3, 4), prompt], responses=1, sampling=WARM, seed=0)
    assert caught.value.prompt == 1


def test_the_whole_context_can_be_used() -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=set())
    ((completion,),) = generate(engine, [(3,) * 112], responses=1, sampling=WARM, seed=0)
    assert len(completion.token_ids) == 16
    assert generate(engine, [], responses=1, sampling=WARM, seed=0) == []


# four tokens of .5, .25, .15, .1
LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 9}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),  # .5 is not enough, .75 is
        ({"top_p": 0.8}, [5 / 9, 5 / 18, 1 / 6, 0]),  # ÷ .9
        ({"top_p": 0.0}, [1, 0, 0, 0]),  # never nothing
        ({"top_k": 3, "top_p": 0.54}, [1, 0, 0, 0]),  # of the 3 kept, the first has .5/.9 = .556
        ({"top_k": 3, "top_p": 0.57}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 0.5}, [25 / 34.5, 6.25 / 34.5, 2.25 / 34.5, 1 / 34.5]),  # p² ÷ Σp²; Σp² = .345
    ],
    ids=repr,
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_frequencies_and_logprobs_of_what_is_sampled(options: dict, kept: list[float], order: list[int]) -> None:
    draws = 4000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    uniform[0], uniform[1] = 0.0, 1.0 - 2**-24  # the ends of what torch.rand gives
    sampling = Sampling(**{"temperature": 1.0, "max_new_tokens": 1, **options})
    ids, logprobs = sample(LOGITS[order].expand(draws, 4), uniform, sampling)
    expected = torch.tensor(kept, dtype=torch.float32)[order]
    torch.testing.assert_close(logprobs.exp(), expected[ids])
    counts = torch.bincount(ids, minlength=4)
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - draws * expected)[possible].square() / (draws * expected)[possible]).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand


def test_the_engine_samples_from_its_policy() -> None:
    policy, draws = tiny_policy(), 2000
    engine = LocalEngine(policy.model, end_tokens=ENDS, max_sequences=4096)
    once = replace(WARM, max_new_tokens=1)
    (group,) = generate(engine, [PROMPTS[0]], responses=draws, sampling=once, seed=0)
    logits = policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach()
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=45)
    expected = torch.softmax(logits / 0.7, dim=-1)
    assert (counts / draws - expected).abs().sum() / 2 < 0.06
    assert (counts / draws - torch.softmax(logits, dim=-1)).abs().sum() / 2 > 0.1  # not those of another temperature


def test_truncated_sampling_through_the_engine() -> None:
    policy = tiny_policy()
    for completion in flat(sampled(policy, sampling=replace(WARM, top_k=3, top_p=0.9))):
        assert (completion.logprobs <= 0).all()
    narrow = sampled(policy, sampling=replace(WARM, top_k=1))
    assert tokens(narrow) == tokens(sampled(policy, sampling=replace(WARM, temperature=0.0)))
