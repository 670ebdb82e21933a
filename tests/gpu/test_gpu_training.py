"""The trainer on a CUDA device: ratio, objectives, attention and recomputed activations."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from builders import random_ids, response, tiny_policy
from machine import GPU, on_gpu
from steadyrl import algo
from steadyrl.algo import Objective, Reinforce
from steadyrl.model.forward import response_logprobs
from steadyrl.model.loading import Policy, recompute_activations
from steadyrl.model.packing import pack, pack_sequences
from steadyrl.routing import record, replay
from steadyrl.training.forward import old_pass, update_at_old, update_later
from steadyrl.types import MicroBatch, Tokens

pytestmark = on_gpu

EXPORTED = [getattr(algo, name) for name in algo.__all__]
OBJECTIVES = [kind for kind in EXPORTED if isinstance(kind, type) and Objective in kind.__mro__[1:]]
SUM = partial(Reinforce(), responses=1, groups=1)
"""Σ Â log π over all tokens, undivided: gradients are then large beside the tolerances."""
WIDE = {
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "initializer_range": 0.05,
}
DTYPES = [torch.float32, torch.bfloat16]


def there(policy: Policy) -> Policy:
    """The policy on the device."""
    return replace(policy, model=policy.model.to(GPU).eval())  # pyright: ignore[reportArgumentType]


def with_routes(policy: Policy, *, experts: int = 8) -> MicroBatch:
    """Twelve responses to four prompts, with valid routes."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in range(12):
        prompt, answer = random_ids(5 + n % 4, seed=n % 4), random_ids(9 + 3 * n, seed=n)
        rows = torch.rand(len(prompt) + len(answer) - 1, 2, experts, generator=generator).topk(2).indices
        advantage = 1.0 if n % 2 else -0.5
        made.append(response(prompt, answer, advantage=advantage, routes=rows.to(torch.uint8)))
    (micro,) = pack(made, micro_tokens=4096, one_block=False)
    return micro.to(policy.device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["R2", "R3"])
@pytest.mark.parametrize("config", [{}, WIDE], ids=["narrow", "wide"])
def test_at_the_old_weights_the_ratio_is_exactly_one(dtype, mode, config):
    """The θ_old pass keeps no graph and the update does: both must compute the same bits."""
    policy = there(tiny_policy(dtype=dtype, **config))
    micro = with_routes(policy)
    old = old_pass(policy, micro, replay=mode, temperature=0.7)
    trace = update_later(policy, old, SUM, temperature=0.7)
    assert any(bool(p.grad.any()) for p in policy.model.parameters() if p.grad is not None)
    assert torch.equal(trace.logprobs, old.old_logprobs)


def with_gradient(policy: Policy, micro: MicroBatch) -> tuple[Tensor, list[Tensor]]:
    policy.model.zero_grad()
    trace = update_at_old(policy, micro, SUM, replay="R3", temperature=1.0)
    return trace.logprobs, [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_recomputed_activations_give_the_same_gradient(dtype):
    straight, recomputed = (there(tiny_policy(dtype=dtype)) for _ in range(2))
    recompute_activations(recomputed.model)
    micro = with_routes(straight)
    (expected, gradients), (found, again) = with_gradient(straight, micro), with_gradient(recomputed, micro)
    assert torch.equal(found, expected)
    for one, other in zip(again, gradients, strict=True):  # added in any order
        torch.testing.assert_close(one, other, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_a_gradient_is_that_of_the_cpu():
    here = tiny_policy()
    expected, gradients = with_gradient(here, with_routes(here))
    policy = there(here)
    found, ours = with_gradient(policy, with_routes(policy))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", OBJECTIVES, ids=lambda kind: kind.__name__)
def test_an_objective_is_that_of_the_cpu(kind):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (64,), generator=generator)
    response = torch.arange(64).repeat_interleave(lengths)
    advantages = torch.randn(64, generator=generator)[response]
    old, rollout, now = (-1.0 + 0.2 * torch.randn(len(response), generator=generator) for _ in range(3))
    per_token = lengths.float()[response]
    tokens = Tokens(
        rollout_logprobs=rollout,
        old_logprobs=old,
        advantages=advantages,
        response_tokens=per_token,
        group_tokens=8 * per_token,
        response=response,
    )
    objective, found = kind(), []
    for device in ("cpu", GPU):
        moved = Tokens(**{name: getattr(tokens, name).to(device) for name in Tokens.__slots__})
        leaf = now.clone().to(device).requires_grad_()
        terms = objective(leaf, moved, responses=64, groups=8, batch_tokens=len(response))
        terms.surrogate.sum().backward()
        assert leaf.grad is not None
        found.append((terms.surrogate.detach().cpu(), leaf.grad.cpu(), terms.truncated.cpu()))
    (value, gradient, truncated), (ours, our_gradient, our_truncated) = found
    torch.testing.assert_close(ours, value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-6)
    assert torch.equal(our_truncated, truncated)


LINEAR = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
"""Kernels whose memory grows with length, and not with its square."""


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_packed_rows_need_no_square_of_the_length(dtype, near, record_property):
    """Queries that share keys, causal, without a mask; compared with the kernel that computes all scores."""
    wide = WIDE | {"max_position_embeddings": 1024}
    policy, exact = there(tiny_policy(dtype=dtype, **wide)), there(tiny_policy(**wide))
    exact.model.load_state_dict({k: v.float() for k, v in policy.model.state_dict().items()})
    sequences = [random_ids(n, seed=n) for n in (700, 690, 512, 33)]
    (batch,) = pack_sequences(sequences, [50, 50, 9, 2], micro_tokens=4096, one_block=False)
    batch = batch.to(policy.device)
    with torch.no_grad(), record(exact.model) as recorder, sdpa_kernel(SDPBackend.MATH):
        expected, _ = response_logprobs(exact.model, batch, temperature=1.0)
    with sdpa_kernel(LINEAR), replay(policy.model, recorder.routes()):
        found, _ = response_logprobs(policy.model, batch, temperature=1.0)
        found.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.model.parameters() if p.grad is not None)
    differ = (found.detach() - expected).abs()
    record_property("mean and largest difference", (float(differ.mean()), float(differ.max())))
    assert float(differ.mean()) < near
