import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders import FAMILIES, dense_policy, family_policy, random_ids, tiny_policy
from steadyrl.algo.ledger import routes_differ
from steadyrl.engine import local
from steadyrl.engine.base import EngineError
from steadyrl.engine.local import LocalEngine, sample
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_sequences
from steadyrl.model.routing import record
from steadyrl.types import Completion, Routes, Sampling

PROMPTS = [random_ids(n, seed=n) for n in (7, 1, 12, 3, 7)]  # mixed lengths, one of a single token
ENDS = {1, 10, 20, 30}  # four of 45 tokens, so that responses end at different times
WARM = Sampling(temperature=0.7, max_new_tokens=16)

Answers = list[list[Completion]]


def generate(policy: Policy, *, sampling: Sampling = WARM, responses: int = 3, seed: int = 0, **options) -> Answers:
    engine = LocalEngine(policy.model, end_tokens=ENDS, **options)
    return engine.generate(PROMPTS, responses=responses, sampling=sampling, seed=seed)


def flat(answers: Answers) -> list[Completion]:
    return [completion for group in answers for completion in group]


def tokens(answers: Answers) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in flat(answers)]


@torch.no_grad()
def trained(policy: Policy, prompt: tuple[int, ...], completion: Completion) -> tuple[Tensor, Routes | None]:
    """Log-probabilities and routes as the trainer computes them for this one sequence."""
    sequence = (*prompt, *completion.token_ids)
    (batch,) = pack_sequences([sequence], [len(prompt)], micro_tokens=64, one_block=False, device=policy.device)
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
    return max(differences), max(disagreements)


SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@pytest.mark.parametrize("policy", [tiny_policy(), dense_policy(), dense_policy(**SLIDING)])
def test_greedy_is_transformers_generate(policy: Policy) -> None:
    answers = generate(policy, sampling=Sampling(temperature=0.0, max_new_tokens=16), responses=2)
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
    difference, disagreement = furthest(policy, generate(policy))
    assert difference < 1e-4
    assert disagreement == 0.0


def test_bfloat16_is_near_the_trainer() -> None:
    policy = dense_policy(dtype=torch.bfloat16)
    assert 0 < furthest(policy, generate(policy))[0] < 0.2


def test_more_experts_than_a_byte_counts() -> None:
    policy = tiny_policy(num_experts=300, num_experts_per_tok=4)
    answers = generate(policy)
    assert {c.routes.dtype for c in flat(answers) if c.routes is not None} == {torch.uint16}
    assert furthest(policy, answers)[1] == 0.0


def test_a_planted_shift_is_caught() -> None:
    policy = tiny_policy()
    answers = generate(policy)
    late = [[replace(c, logprobs=c.logprobs.roll(1)) for c in group] for group in answers]
    assert furthest(policy, late)[0] > 0.1
    moved = [
        [replace(c, routes=c.routes.roll(1, dims=0)) for c in group] for group in answers if group[0].routes is not None
    ]
    assert furthest(policy, moved)[1] > 0.1


def test_how_a_response_ends() -> None:
    answers = flat(generate(tiny_policy(), responses=8))
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
    answers = generate(policy, sampling=replace(WARM, max_new_tokens=1))
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
    assert same(generate(policy, seed=5), generate(policy, seed=5), atol=0)
    assert tokens(generate(policy, seed=5)) != tokens(generate(policy, seed=6))


def test_responses_to_one_prompt_differ() -> None:
    (group,) = LocalEngine(tiny_policy().model, end_tokens=set()).generate([(5, 6)], responses=8, sampling=WARM, seed=0)
    assert len({c.token_ids for c in group}) == 8


@pytest.mark.parametrize("max_sequences", [1, 2, 5, 12])  # fewer than one prompt's 5 responses, exactly, and more
def test_who_is_decoded_beside_does_not_matter(max_sequences: int) -> None:
    policy = tiny_policy()
    few = generate(policy, responses=5, max_sequences=max_sequences)
    assert same(few, generate(policy, responses=5, max_sequences=256), atol=1e-5)


@pytest.mark.parametrize("below", [0.0, 0.5, 1.0])  # never, sometimes, whenever one has ended
def test_dropping_the_ended_does_not_matter(below: float, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy()
    expected = generate(policy, responses=5)
    monkeypatch.setattr(local, "COMPACT_BELOW", below)
    assert same(generate(policy, responses=5), expected, atol=1e-5)


def test_weights_are_taken_over() -> None:
    first, second = tiny_policy(0), tiny_policy(1)
    engine = LocalEngine(first.model, end_tokens=ENDS)
    before = engine.generate(PROMPTS, responses=2, sampling=WARM, seed=0)
    assert (engine.policy_version, {c.policy_version for c in flat(before)}) == (0, {0})
    engine.load_weights(dict(second.model.named_parameters()), policy_version=7)
    after = engine.generate(PROMPTS, responses=2, sampling=WARM, seed=0)
    assert (engine.policy_version, {c.policy_version for c in flat(after)}) == (7, {7})
    assert furthest(first, before)[0] < 1e-4
    assert furthest(second, after)[0] < 1e-4
    assert furthest(first, after)[0] > 0.1


def test_the_engine_holds_a_copy() -> None:
    policy = tiny_policy()
    engine = LocalEngine(policy.model, end_tokens=ENDS)
    before = engine.generate(PROMPTS, responses=2, sampling=WARM, seed=0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1.0)
    assert same(engine.generate(PROMPTS, responses=2, sampling=WARM, seed=0), before, atol=0)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_change_nothing(fault: str) -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=ENDS)
    before = engine.generate(PROMPTS, responses=1, sampling=WARM, seed=0)
    weights = {name: torch.zeros_like(p) for name, p in tiny_policy().model.named_parameters()}
    if fault == "missing":
        del weights["lm_head.weight"]
    elif fault == "unknown":
        weights["lm_head.bias"] = torch.zeros(45)
    else:
        weights["lm_head.weight"] = torch.zeros(45, 16)
    with pytest.raises(EngineError, match=r"lm_head"):
        engine.load_weights(weights, policy_version=1)
    assert engine.policy_version == 0
    assert same(engine.generate(PROMPTS, responses=1, sampling=WARM, seed=0), before, atol=0)


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
        engine.generate([(3, 4), prompt], responses=1, sampling=WARM, seed=0)
    assert caught.value.prompt == 1


def test_the_whole_context_can_be_used() -> None:
    engine = LocalEngine(tiny_policy().model, end_tokens=set())
    ((completion,),) = engine.generate([(3,) * 112], responses=1, sampling=WARM, seed=0)
    assert len(completion.token_ids) == 16
    assert engine.generate([], responses=1, sampling=WARM, seed=0) == []


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
    (group,) = engine.generate([PROMPTS[0]], responses=draws, sampling=once, seed=0)
    logits = policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach()
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=45)
    expected = torch.softmax(logits / 0.7, dim=-1)
    assert (counts / draws - expected).abs().sum() / 2 < 0.06
    assert (counts / draws - torch.softmax(logits, dim=-1)).abs().sum() / 2 > 0.1  # not those of another temperature


def test_truncated_sampling_through_the_engine() -> None:
    policy = tiny_policy()
    for completion in flat(generate(policy, sampling=replace(WARM, top_k=3, top_p=0.9))):
        assert (completion.logprobs <= 0).all()
    narrow = generate(policy, sampling=replace(WARM, top_k=1))
    assert tokens(narrow) == tokens(generate(policy, sampling=replace(WARM, temperature=0.0)))
