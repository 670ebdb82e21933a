"""What vLLM owes the trainer, on real vLLM: log-probabilities, routes, weights, repetition."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from builders import dense_policy, random_ids, tiny_policy
from machine import needs_fp8_cache, needs_vllm, without_fp8_instructions
from steadyrl.algo.ledger import routes_differ
from steadyrl.engine.base import EngineError, Request, generate
from steadyrl.engine.local import LocalEngine
from steadyrl.engine.precision import quantised_weights, round_e4m3
from steadyrl.engine.vllm import SUPPORTED, VLLMEngine, start
from steadyrl.engine.vllm import engine as engine_module
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack_sequences
from steadyrl.model.repeatable import repeatable
from steadyrl.routing import record
from steadyrl.types import Completion, Sampling

pytestmark = [pytest.mark.vllm, needs_vllm]

SIZES = {"hidden_size": 64, "head_dim": 32, "initializer_range": 0.05}
ENDS = {1, 10, 20, 30}
WARM = Sampling(temperature=0.7, max_new_tokens=16)
PROMPTS = [random_ids(n, seed=n) for n in (7, 1, 40, 3, 40, 70)]
"""Of a single token, of more than a block of the cache, and the same one twice."""

Answers = list[list[Completion]]


def engine_of(policy: Policy, **options) -> VLLMEngine:
    return VLLMEngine(policy.model, end_tokens=ENDS, **({"cache_gib": 0.01} | options))


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return dict(policy.model.named_parameters())


@pytest.fixture(scope="module")
def bf16() -> tuple[Policy, VLLMEngine]:
    policy = tiny_policy(dtype=torch.bfloat16, **SIZES)
    return policy, engine_of(policy)


@pytest.fixture(scope="module")
def fp32() -> tuple[Policy, VLLMEngine]:
    """Its weights are changed by the tests: each hands over those it needs."""
    policy = tiny_policy(**SIZES)
    return policy, engine_of(policy)


def ask(
    engine: VLLMEngine, prompts=PROMPTS, *, responses: int = 4, sampling: Sampling = WARM, seed: int = 0
) -> Answers:
    return generate(engine, prompts, responses=responses, sampling=sampling, seed=seed)


@torch.no_grad()
def apart(
    policy: Policy, answers: Answers, prompts=PROMPTS, *, temperature: float = 0.7, moved: int = 0, late: int = 0
) -> tuple[float, float]:
    """Mean |Δ log-probability|, and share of (token, layer) sets of experts that differ, from the trainer's forward.

    `late` shifts vLLM's log-probabilities by so many tokens, `moved` its routes by so many positions.
    """
    differences, disagreements = [], [torch.zeros(1)]
    for prompt, group in zip(prompts, answers, strict=True):
        for completion in group:
            sequence = (*prompt, *completion.token_ids)
            (batch,) = pack_sequences([sequence], [len(prompt)], micro_tokens=512, one_block=False)
            with record(policy.model) as recorder:
                logprobs, _ = response_logprobs(policy.model, batch, temperature=temperature)
            differences.append((logprobs - completion.logprobs.roll(late)).abs())
            if completion.routes is not None:
                assert completion.routes.shape == recorder.routes().shape  # every fed position, the prompt's included
                differ = routes_differ(recorder.routes(), completion.routes.roll(moved, dims=0))
                disagreements.append(differ.float().flatten())
    return torch.cat(differences).mean().item(), torch.cat(disagreements).mean().item()


@contextmanager
def seen(engine: VLLMEngine) -> Iterator[list]:
    """What vLLM itself returned inside the context, in the order of the prompts."""
    outputs, step = [], engine._step

    def watched():
        found = step()
        outputs.extend(found)
        outputs.sort(key=lambda output: int(output.request_id))
        return found

    with patch.object(engine, "_step", watched):
        yield outputs


def test_log_probabilities_and_routes_are_the_trainers(bf16) -> None:
    policy, engine = bf16
    difference, disagreement = apart(policy, ask(engine))
    assert 0.0 < difference <= 5e-3
    assert disagreement <= 0.05


def test_planted_faults_are_caught(bf16) -> None:
    policy, engine = bf16
    answers = ask(engine)
    assert apart(policy, answers, temperature=0.8)[0] > 5e-3
    assert apart(policy, answers, late=1)[0] > 5e-3
    assert apart(policy, answers, moved=1)[1] > 0.7  # chance: the same two of eight experts is 1 in 28
    with patch.object(start, "LOGPROBS", "raw_logprobs"), patch.object(engine_module, "MOST_APART", 1e9):
        assert apart(policy, ask(engine_of(policy)))[0] > 5e-3


def test_sixteen_responses_share_a_prompt(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    with seen(engine) as outputs:
        (group,) = answers = ask(engine, PROMPTS[-1:], responses=16)
    assert outputs[0].num_cached_tokens == 64  # two blocks of 32 of its 70 tokens
    assert len({completion.token_ids for completion in group}) == 16
    assert max(apart(policy, answers, PROMPTS[-1:])) < 1e-4


def test_the_second_request_of_a_prompt_has_the_routes_of_the_first(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    prompts = [PROMPTS[-1]] * 2
    with seen(engine) as outputs:
        first, second = answers = ask(engine, prompts, responses=1)
    assert outputs[1].num_cached_tokens == 64
    assert max(apart(policy, answers, prompts)) < 1e-4
    assert torch.equal(first[0].routes[:70], second[0].routes[:70])


def test_how_responses_end(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    completions = [c for group in ask(engine, responses=8) for c in group]
    for completion in completions:
        ids = completion.token_ids
        assert not set(ids[:-1]) & ENDS
        assert completion.finish_reason == ("stop" if ids[-1] in ENDS else "length")
        assert len(ids) == 16 or completion.finish_reason == "stop"
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    once = ask(engine, sampling=replace(WARM, max_new_tokens=1))
    assert {len(c.token_ids) for group in once for c in group} == {1}
    assert max(apart(policy, once)) < 1e-4


def test_prompts_in_pieces(fp32) -> None:
    policy, _ = fp32
    answers = ask(engine_of(policy, batch_tokens=24, max_sequences=8))
    assert max(apart(policy, answers)) < 1e-4


def test_a_cache_too_small_for_the_batch(fp32) -> None:
    from vllm.v1.core.sched.scheduler import Scheduler

    policy, _ = fp32
    block = 2 * 2 * 2 * 32 * 4 * engine_module.CPU_BLOCK  # keys and values, layers, heads, head_dim, bytes
    engine = engine_of(policy, cache_gib=9 * block / 2**30)
    long = replace(WARM, max_new_tokens=40)
    with patch.object(
        Scheduler, "_preempt_request", autospec=True, side_effect=Scheduler._preempt_request
    ) as preempted:
        answers = ask(engine, responses=8, sampling=long)
    assert preempted.call_count > 3
    assert max(apart(policy, answers)) < 1e-4


def test_only_some_layers_are_mixtures(fp32) -> None:
    policy = tiny_policy(**SIZES, num_hidden_layers=3, mlp_only_layers=[1])
    answers = ask(engine_of(policy))
    assert answers[0][0].routes.shape[1] == 2
    assert max(apart(policy, answers)) < 1e-4


def test_a_dense_model_has_no_routes(fp32) -> None:  # vLLM makes its groups for experts with the first engine
    policy = dense_policy(**SIZES)
    answers = ask(engine_of(policy))
    assert all(c.routes is None for group in answers for c in group)
    assert apart(policy, answers)[0] < 1e-4


@pytest.mark.parametrize(
    ("build", "more"),
    [
        (tiny_policy, {"tie_word_embeddings": True}),
        (dense_policy, {}),
        (dense_policy, {"tie_word_embeddings": True}),
    ],
)
def test_an_update_arrives(build: Callable[..., Policy], more: dict[str, bool]) -> None:
    engine, other = engine_of(build(**SIZES, **more)), build(seed=1, **SIZES, **more)
    engine.update_weights(weights(other).items(), version=1)
    assert max(apart(other, ask(engine))) < 1e-4


def test_after_an_update_an_fp8_engine_is_one_that_began_with_the_new_weights() -> None:
    policy, other = tiny_policy(**SIZES), tiny_policy(seed=1, **SIZES)
    engine, fresh = (engine_of(each, precision="fp8", kv_precision="auto") for each in (policy, other))
    with repeatable(policy.device):
        expected = ask(fresh)
        assert not same(ask(engine), expected)
        engine.update_weights(weights(other).items(), version=1)
        assert same(ask(engine), expected)


def test_new_weights_for_a_prompt_whose_prefix_is_cached(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    prompts, other = PROMPTS[-1:], tiny_policy(seed=1, **SIZES)
    assert apart(policy, ask(engine, prompts), prompts)[0] < 1e-4
    with patch.object(engine, "_forget_prompts", lambda: None):  # an update that left the prefix: caught
        engine.update_weights(weights(other).items(), version=1)
        assert apart(other, ask(engine, prompts), prompts)[0] > 1e-2
    engine.update_weights(weights(other).items(), version=2)
    answers = ask(engine, prompts)
    assert max(apart(other, answers, prompts)) < 1e-4
    assert apart(policy, answers, prompts)[0] > 0.1
    assert {c.policy_version for c in answers[0]} == {engine.policy_version} == {2}


def test_an_update_that_cannot_reset_the_prefix_cache_is_none(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=4)
    with patch.object(engine._llm, "reset_prefix_cache", return_value=False) as reset:
        with pytest.raises(EngineError, match="did not reset its prefix cache"):
            engine.update_weights(weights(policy).items(), version=5)
        reset.assert_called_once()
    assert engine.policy_version == 4
    with pytest.raises(EngineError, match="holds no whole weights"):
        ask(engine)
    engine.update_weights(weights(policy).items(), version=5)


def test_each_update_packs_the_experts_anew(fp32) -> None:
    _, engine = fp32
    for seed in (1, 2, 1):
        engine.update_weights(weights(tiny_policy(seed=seed, **SIZES)).items(), version=seed)
        assert max(apart(tiny_policy(seed=seed, **SIZES), ask(engine))) < 1e-4
    left = {version: replace(what, keeps_expert_kernels=False) for version, what in SUPPORTED.items()}
    with (
        patch.object(engine_module, "SUPPORTED", left),
        pytest.raises(EngineError, match="other log-probabilities than the train"),
    ):
        engine_of(tiny_policy(**SIZES | {"initializer_range": 0.2, "moe_intermediate_size": 32}))


def stops_until_a_good_one(policy: Policy, engine: VLLMEngine, new, words: str) -> None:
    """After version 4 this update raises, the version stays, and nothing is sampled until an update is good."""
    engine.update_weights(weights(policy).items(), version=4)
    with pytest.raises(EngineError, match=words):
        engine.update_weights(new, version=5)
    assert engine.policy_version == 4
    with pytest.raises(EngineError, match="holds no whole weights: the last update failed"):
        ask(engine)
    engine.update_weights(weights(policy).items(), version=5)
    assert max(apart(policy, ask(engine))) < 1e-4


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_stop_the_sampling_until_a_good_update(fp32, fault: str) -> None:
    policy, engine = fp32
    bad = weights(tiny_policy(seed=1, **SIZES))
    name = next(iter(bad))
    tensor = bad.pop(name)
    bad |= {"unknown": {name: tensor, "other": tensor}, "shape": {name: tensor[:-1]}}.get(fault, {})
    stops_until_a_good_one(policy, engine, bad.items(), name if fault != "unknown" else "other")


def test_weights_that_are_not_numbers_are_no_update(fp32) -> None:
    policy, engine = fp32
    bad = weights(tiny_policy(seed=1, **SIZES))
    bad["model.norm.weight"] = torch.full_like(bad["model.norm.weight"], torch.nan)
    stops_until_a_good_one(policy, engine, bad.items(), "did not reach vLLM: ValueError: .*norm.weight are not filled")


@pytest.mark.parametrize("lost", ["embed_tokens", "layers.0.input_layernorm", "k_proj", "experts.7.up_proj"])
def test_a_checkpoint_that_lacks_a_tensor_is_no_update(fp32, monkeypatch, lost: str) -> None:
    policy, engine = fp32
    whole = engine_module.checkpoint
    broken = iter([False, True])

    def lacking(*args) -> dict[str, torch.Tensor]:
        fault = next(broken, False)
        return {name: tensor for name, tensor in whole(*args).items() if not (fault and lost in name)}

    monkeypatch.setattr(engine_module, "checkpoint", lacking)
    stops_until_a_good_one(policy, engine, weights(policy).items(), "not filled by the checkpoint")


def test_the_engine_holds_copies_of_the_weights(fp32) -> None:
    engine, trained, before = fp32[1], tiny_policy(**SIZES), tiny_policy(**SIZES)
    engine.update_weights(weights(trained).items(), version=1)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.add_(1.0)
    assert max(apart(before, ask(engine))) < 1e-4


def test_greedy_is_the_embedded_engines(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    certain = Sampling(temperature=0.0, max_new_tokens=16)
    embedded = generate(LocalEngine(policy.model, end_tokens=ENDS), PROMPTS, responses=2, sampling=certain, seed=0)
    for ours, theirs in zip(ask(engine, sampling=certain, responses=2), embedded, strict=True):
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        assert not any(c.logprobs.any() for c in ours)  # a certainty
        assert all(
            torch.equal(a.routes.sort().values, b.routes.sort().values) for a, b in zip(ours, theirs, strict=True)
        )


def test_the_same_completions_whatever_came_before(bf16) -> None:
    policy, engine = bf16
    with repeatable(policy.device):
        first = ask(engine, seed=5)
        ask(engine, PROMPTS[::-1], seed=6)
        assert same(first, ask(engine, seed=5))
        assert not same(first, ask(engine, seed=6))


def test_a_call_takes_nothing_from_the_cache_of_earlier_ones(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    with seen(engine) as outputs:
        ask(engine, PROMPTS[-1:], responses=1)
        ask(engine, PROMPTS[-1:], responses=1)
    assert [output.num_cached_tokens for output in outputs] == [0, 0]


def same(one: Answers, two: Answers) -> bool:
    return all(
        a.token_ids == b.token_ids and torch.equal(a.logprobs, b.logprobs) and torch.equal(a.routes, b.routes)
        for left, right in zip(one, two, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_answers_come_as_they_end_and_more_may_be_asked_meanwhile(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    lengths = {0: 40, 1: 2, 2: 20}

    def asked(place: int, new: int) -> Request:
        sampling = replace(WARM, max_new_tokens=new)
        return Request(token_ids=PROMPTS[-1], responses=2, sampling=sampling, seed=0, place=place)

    never = engine_of(policy, max_sequences=8)
    never._ends = []
    never.submit([asked(place, new) for place, new in lengths.items()])
    found = never.collect()
    first = next(found)
    assert (first.place, [len(c.token_ids) for c in first.completions]) == (1, [2, 2])
    with pytest.raises(EngineError, match="2 requests wait for their answers: collect them before you update"):
        never.update_weights(weights(policy).items(), version=1)
    never.submit([asked(1, 3)])
    with pytest.raises(EngineError, match="requests of one seed at a time"):
        never.submit([replace(asked(9, 3), seed=1)])
    assert [answer.place for answer in found] == [1, 2, 0]


def test_an_iterator_that_is_closed_drops_the_requests_without_an_answer(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    with repeatable(policy.device):
        expected = ask(engine)
        requests = [
            Request(token_ids=prompt, responses=4, sampling=WARM, seed=3, place=place)
            for place, prompt in enumerate(PROMPTS)
        ]
        engine.submit(requests)
        found = engine.collect()
        next(found)
        found.close()
        assert list(engine.collect()) == []
        assert same(ask(engine), expected)


def test_sampling_takes_nothing_from_the_trainers_random_numbers(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    before = torch.get_rng_state()
    request = Request(token_ids=PROMPTS[0], responses=2, sampling=WARM, seed=0, place=0)
    engine.submit([request])
    for _ in engine.collect():
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


def test_on_a_cpu_sleeping_changes_nothing(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    engine.sleep()
    engine.wake()
    assert max(apart(policy, ask(engine))) < 1e-4


def test_it_samples_from_the_policy(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    (group,) = ask(engine, [PROMPTS[0]], responses=1500, sampling=replace(WARM, max_new_tokens=1))
    logits = policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1].detach()
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=len(logits))
    expected = torch.softmax(logits / 0.7, dim=-1)
    assert (counts / 1500 - expected).abs().sum() / 2 < 0.08


def test_truncated_sampling(fp32) -> None:
    policy, engine = fp32
    engine.update_weights(weights(policy).items(), version=0)
    narrow = ask(engine, sampling=replace(WARM, top_k=2))
    assert (torch.cat([c.logprobs for group in narrow for c in group]) > -10).all()
    for prompt, group in zip(PROMPTS, narrow, strict=True):
        logits = policy.model(torch.tensor([prompt])).logits[0, -1].detach() / 0.7
        best = logits.topk(2)
        kept = dict(zip(best.indices.tolist(), best.values.log_softmax(-1).tolist(), strict=True))
        assert all(abs(c.logprobs[0].item() - kept[c.token_ids[0]]) < 1e-4 for c in group)


def test_fp8_weights_are_rounded_before_they_are_handed_over() -> None:
    policy, rounded = tiny_policy(**SIZES), tiny_policy(**SIZES)
    with torch.no_grad():
        for name, dim in quantised_weights(rounded.model).items():
            rounded.model.get_parameter(name).copy_(round_e4m3(policy.model.get_parameter(name), dim=dim))
    answers = ask(engine_of(policy, precision="fp8"))
    assert apart(rounded, answers)[0] < 1e-4 < 1e-3 < apart(policy, answers)[0]


def test_what_is_in_force(bf16) -> None:
    assert bf16[1].facts == {
        "engine": "vllm",
        "version": "0.30.0",
        "device": "cpu",
        "dtype": "bfloat16",
        "weights": "native",
        "activations": "native",
        "kv_cache": "native",
        "logprobs": "processed_logprobs",
    }
    assert engine_of(bf16[0], precision="fp8").facts["weights"] == "fp8 (e4m3), rounded before"


@needs_fp8_cache
@pytest.mark.parametrize("asked", ["fp8", "auto"])
def test_an_fp8_cache_is_what_was_asked_for_and_what_samples(bf16, asked: str) -> None:
    policy, native = bf16
    engine = engine_of(policy, kv_precision=asked)
    assert engine.facts["kv_cache"] == "fp8 (e4m3), by vLLM"
    assert "kv_cache_reason" not in engine.facts
    assert apart(policy, ask(engine))[0] > 1.5 * apart(policy, ask(native))[0]


def test_auto_takes_the_native_cache_on_a_cpu_without_the_instructions(bf16, monkeypatch) -> None:
    policy, native = bf16
    with monkeypatch.context() as without:
        without_fp8_instructions(without)  # vLLM asks torch by the same functions
        engine = engine_of(policy, kv_precision="auto")
    assert engine.facts["kv_cache"] == "native"
    assert "needs a CPU with AVX-512 or AMX" in str(engine.facts["kv_cache_reason"])
    with repeatable(policy.device):
        assert same(ask(engine), ask(native))


def test_auto_takes_the_native_cache_for_heads_that_have_no_fp8_kernel() -> None:
    engine = engine_of(tiny_policy(**SIZES | {"head_dim": 80}), kv_precision="auto")
    assert engine.facts["kv_cache"] == "native"
    assert engine.facts["kv_cache_reason"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((), "prompt 0 is empty"),
        ((3, 999), "outside the vocabulary of 45"),
        ((3,) * 120, "120 tokens; with max_new_tokens = 16 it exceeds the model's context of 128"),
    ],
)
def test_prompts_that_cannot_be_answered(bf16, prompt: tuple[int, ...], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        ask(bf16[1], [prompt])


def test_a_temperature_that_vllm_would_raise(bf16) -> None:
    with pytest.raises(EngineError, match=r"temperature = 0\.005 is below 0\.01"):
        ask(bf16[1], sampling=replace(WARM, temperature=0.005))


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_no_memory_for_the_cache(bf16, size: float) -> None:
    with pytest.raises(EngineError, match=r"vLLM cannot start: .*engine\.cache_gib"):
        engine_of(bf16[0], cache_gib=size)


def test_options_that_vllm_refuses_are_named_without_the_memory_hint(bf16, monkeypatch) -> None:
    policy, _ = bf16
    monkeypatch.setattr(engine_module, "CPU_BLOCK", -3)
    with pytest.raises(EngineError, match="vLLM cannot start: ") as refusal:
        engine_of(policy)
    assert "cache_gib" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_closed_engine_samples_no_more(fp32) -> None:
    policy, other = fp32
    engine = engine_of(policy)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="this engine was closed"):
        ask(engine)
    other.update_weights(weights(policy).items(), version=0)  # and another one goes on
    assert max(apart(policy, ask(other))) < 1e-4


def test_a_model_that_its_kernels_cannot_compute() -> None:
    with pytest.raises(EngineError, match=r"vLLM cannot compute Qwen3MoeForCausalLM: .*head_dim"):
        engine_of(tiny_policy(head_dim=8))


def test_the_trainer_keeps_its_threads(bf16) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)
