"""Routes on a CUDA device: what was recorded is replayed exactly, in the types and kernels that run there."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders import dense_policy, random_ids, tiny_policy
from machine import GPU, on_gpu
from steadyrl.conformance.families import build, named_config
from steadyrl.engine.base import generate
from steadyrl.engine.local import LocalEngine
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy
from steadyrl.model.packing import pack, pack_sequences
from steadyrl.routing import RoutingError, check_replay, check_routes, moe_blocks, record, replay
from steadyrl.types import Completion, Sampling, TokenBatch, Trajectory

pytestmark = on_gpu

DTYPES = [torch.float32, torch.bfloat16]
FAMILIES = ["qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe", "gpt_oss", "qwen3_next", "phimoe"]
PROMPTS = [random_ids(n, seed=n) for n in (7, 1, 12, 3)]  # mixed lengths, one of a single token
IDS = torch.tensor([[3, 9, 2, 11, 5, 7, 10], [4, 8, 8, 6, 5, 11, 2]])
MANY = {"num_experts": 300, "num_experts_per_tok": 4}


def there(policy: Policy) -> Policy:
    """The policy on the device."""
    return replace(policy, model=policy.model.to(GPU).eval())  # pyright: ignore[reportArgumentType]


def packed(policy: Policy) -> TokenBatch:
    sequences = [random_ids(n, seed=n) for n in (30, 41, 17, 25)]
    (batch,) = pack_sequences(sequences, [5, 9, 2, 5], micro_tokens=256, one_block=False)
    return batch.to(policy.device)


def scored(policy: Policy, batch: TokenBatch) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradient of their sum."""
    policy.model.zero_grad()
    logprobs, _ = response_logprobs(policy.model, batch, temperature=0.7)
    logprobs.sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


def sampled(policy: Policy, *, temperature: float = 0.7, **options: str) -> list[Completion]:
    engine = LocalEngine(policy.model, end_tokens={1, 10, 20}, **options)
    how = Sampling(temperature=temperature, max_new_tokens=24)
    return [c for group in generate(engine, PROMPTS, responses=3, sampling=how, seed=0) for c in group]


def shifted(policy: Policy, routes: Tensor) -> Tensor:
    """Valid routes of which none is the model's own."""
    counts = torch.tensor([experts for _, experts in moe_blocks(policy.model)], device=routes.device)[:, None]
    return ((routes.int() + 1) % counts).to(routes.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [{}, MANY], ids=["8 experts", "300 experts"])
def test_replay_of_the_recorded_routes_changes_no_bit_of_a_forward(dtype, config, record_property):
    policy = there(tiny_policy(dtype=dtype, **config))
    batch = packed(policy)
    with record(policy.model) as recorder:
        native, gradients = scored(policy, batch)
    routes = recorder.routes()
    assert routes.device.type == policy.device.type
    assert routes.dtype == (torch.uint16 if config else torch.uint8)
    if config:
        assert routes.int().max() > 255
    with replay(policy.model, routes) as watched:
        again, replayed = scored(policy, batch)
    assert torch.equal(again, native)
    assert torch.equal(watched.routes().int(), routes.int())
    furthest = max(float((a - b).abs().max()) for a, b in zip(gradients, replayed, strict=True))
    record_property("largest difference of a gradient", furthest)
    for one, other in zip(gradients, replayed, strict=True):  # added in any order
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["eager", "batched_mm", "grouped_mm"])
def test_every_kernel_of_the_experts_takes_foreign_routes(dtype, kernel, record_property):
    policy = there(tiny_policy(dtype=dtype))
    batch = packed(policy)
    with torch.no_grad(), record(policy.model) as recorder:
        response_logprobs(policy.model, batch, temperature=1.0)
    routes = shifted(policy, recorder.routes())
    reference = there(tiny_policy())
    reference.model.load_state_dict({k: v.float() for k, v in policy.model.state_dict().items()})
    reference.model.set_experts_implementation("eager")
    policy.model.set_experts_implementation(kernel)
    with replay(reference.model, routes):
        expected, _ = scored(reference, batch)
    with replay(policy.model, routes):
        found, gradients = scored(policy, batch)
    differ = float((found - expected).abs().max())
    record_property("largest difference of a log-probability", differ)
    assert differ < (0.15 if dtype == torch.bfloat16 else 1e-4)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_replay(name):
    model = build(named_config(name)).to(GPU).eval()
    check_replay(model)
    ids = IDS.to(GPU)
    with torch.no_grad(), record(model) as recorder:
        native = model(input_ids=ids, use_cache=False).logits
    with torch.no_grad(), replay(model, recorder.routes()):
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, native)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_computes_what_it_computes_on_the_cpu(name):
    model = build(named_config(name)).eval()
    with torch.no_grad(), record(model) as recorder:
        expected = model(input_ids=IDS, use_cache=False).logits
    routes = recorder.routes()
    model.to(GPU)
    with torch.no_grad(), replay(model, routes.to(GPU)):
        found = model(input_ids=IDS.to(GPU), use_cache=False).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [{}, MANY], ids=["8 experts", "300 experts"])
def test_the_trainer_replays_the_routes_of_the_engine(dtype, config, record_property):
    policy = there(tiny_policy(dtype=dtype, **config))
    completions = sampled(policy, precision="fp8", kv_precision="fp8")
    trajectories = [
        Trajectory.single(PROMPTS[n // 3], c, advantage=1.0, group_tokens=9) for n, c in enumerate(completions)
    ]
    (packed_there,) = pack(trajectories, micro_tokens=4096, one_block=False)
    micro = packed_there.to(policy.device)
    routes = micro.batch.routes
    assert routes is not None
    check_routes(policy.model, routes)
    assert all(c.routes is not None and c.routes.device.type == "cpu" for c in completions)
    with replay(policy.model, routes):
        logprobs, _ = scored(policy, micro.batch)
    differ = float((logprobs - micro.rollout_logprobs).abs().mean())
    record_property("mean difference of a log-probability", differ)
    assert differ < 0.3


@pytest.mark.parametrize("policy", [tiny_policy(), dense_policy()], ids=["moe", "dense"])
def test_the_engine_samples_what_it_samples_on_the_cpu(policy, record_property):
    expected = sampled(policy)
    found = sampled(there(policy))
    same = sum(a.token_ids == b.token_ids for a, b in zip(found, expected, strict=True))
    record_property("responses of 12 that are the same", same)
    assert same >= 11  # a number that falls on an edge may go the other way
    for one, other in zip(found, expected, strict=True):
        if one.token_ids == other.token_ids:
            torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-3, atol=1e-3)


def test_broken_routes_are_rejected_on_the_device():
    policy = there(tiny_policy(**MANY))
    routes = torch.zeros(3, 2, 4, dtype=torch.int16, device=GPU).view(torch.uint16)
    with pytest.raises(RoutingError, match="an expert twice"):
        check_routes(policy.model, routes)
