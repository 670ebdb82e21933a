"""Objectives that must agree, do: one list. The tokens are drawn; the gradient is by log π_θ of every token."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steadyrl import algo
from steadyrl.algo import (
    CISPO,
    DAPO,
    DPPOKL,
    DPPOTV,
    GRPO,
    GSPO,
    OPSM,
    SAPO,
    VESPO,
    Composed,
    DrGRPO,
    MiniRL,
    MinPRO,
    Objective,
    PrefixIS,
    Reinforce,
    Tokens,
    group_advantage,
    leave_one_out,
)
from steadyrl.options.source import declared
from steadyrl.recipe import resolve
from steadyrl.recipe.building import build

LENGTHS = torch.tensor([3, 1, 4, 2, 5, 1])


def drawn(lengths: Tensor = LENGTHS, *, spread: float = 0.4) -> tuple[Tensor, Tokens]:
    generator = torch.Generator().manual_seed(0)
    count = int(lengths.sum())
    rollout = -torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 0.1
    old = rollout + spread * torch.randn(count, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.5, 0.0], dtype=torch.float64).repeat_interleave(lengths)
    return old + spread * torch.randn(count, generator=generator, dtype=torch.float64), Tokens(
        rollout_logprobs=rollout,
        old_logprobs=old,
        advantages=advantages,
        response_tokens=lengths.double().repeat_interleave(lengths),
        group_tokens=torch.full((count,), float(count), dtype=torch.float64),
        response=torch.arange(len(lengths)).repeat_interleave(lengths),
    )


def gradient(objective: Objective, logprobs: Tensor, tokens: Tokens) -> Tensor:
    leaf = logprobs.clone().requires_grad_()
    objective(leaf, tokens, responses=6, groups=1).surrogate.sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def decoupled_ppo(logprobs: Tensor, tokens: Tokens) -> Tensor:
    """∇ of Σ (π_old/μ) min(r Â, clip(r) Â) / responses, with autograd through the minimum."""
    leaf = logprobs.clone().requires_grad_()
    ratio = (leaf - tokens.old_logprobs).exp()
    inner = torch.minimum(ratio * tokens.advantages, ratio.clamp(0.8, 1.27) * tokens.advantages)
    ((tokens.old_logprobs - tokens.rollout_logprobs).exp() * inner / 6).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


UNCAPPED = MiniRL(clip=False, weight_cap=None)
WIDE = {"clip_low": 1e9, "clip_high": 1e9}
LIKE_GRPO = {"ratio": "staleness", "mean": "own_tokens", "weight_cap": None}
EVERYWHERE = [  # the same gradient whatever the tokens
    (MiniRL(), Composed()),
    (MiniRL(length_norm=True), Composed(mean="own_tokens")),
    (MiniRL(importance_sampling=False), Composed(ratio="staleness")),
    (UNCAPPED, Composed(trust="none", weight_cap=None)),
    (UNCAPPED, MiniRL(**WIDE, weight_cap=1e9)),
    (UNCAPPED, DPPOTV(threshold=1.0)),
    (UNCAPPED, DPPOKL(threshold=1e9)),
    (UNCAPPED, Composed(ratio="mismatch", trust="none", weight_cap=None)),  # the two factors of eq. 5
    (UNCAPPED, Composed(trust="sequence_mask", threshold=1e9, weight_cap=None)),
    (UNCAPPED, Composed(trust="second_moment", threshold=1e9, weight_cap=None)),
    (UNCAPPED, Composed(trust="none", outside="mask", weight_cap=None)),
    (OPSM(threshold=1e9), GRPO()),
    (
        OPSM(),
        Composed(ratio="staleness", mean="own_tokens", weight_cap=None, trust="clip+sequence_mask", threshold=0.1),
    ),
    (Reinforce(), Composed(ratio="none", trust="none")),
    (PrefixIS(), Composed(level="prefix", trust="none", weight_cap=None)),
    (MinPRO(), Composed(level="lowest_prefix")),
    (DPPOTV(), Composed(trust="tv", threshold=0.15, weight_cap=None)),
    (DPPOKL(), Composed(trust="kl", threshold=0.05, weight_cap=None)),
    (GRPO(), Composed(ratio="staleness", mean="own_tokens", weight_cap=None)),
    (DrGRPO(clip_high=0.27), Composed(ratio="staleness", weight_cap=None)),
    (DAPO(clip_high=0.27), Composed(ratio="staleness", mean="group_tokens", weight_cap=None)),
    (CISPO(**WIDE), Composed(ratio="staleness", mean="group_tokens", weight_cap=None, trust="none")),
    (GSPO(**WIDE), Composed(ratio="staleness", level="geometric", mean="own_tokens", weight_cap=None, trust="none")),
]
SINGLE = [  # on responses of a single token
    (GSPO(clip_low=0.2, clip_high=0.27), GRPO()),
    (PrefixIS(), UNCAPPED),
    (MinPRO(), MiniRL()),
    (Composed(level="sequence"), MiniRL()),
    (MiniRL(length_norm=True), MiniRL()),
    (GRPO(clip_high=0.2), DrGRPO()),
]
ONE_ENGINE = [  # where μ_old = π_old
    (MiniRL(weight_cap=None), DrGRPO(clip_high=0.27)),
    (MiniRL(length_norm=True, weight_cap=None), GRPO()),
    (MiniRL(), MiniRL(importance_sampling=False)),
    (Composed(trust="rollout_clip"), Composed(trust="clip")),
]
ON_POLICY = [Reinforce(), MiniRL(), MinPRO(), PrefixIS(), DrGRPO(), DPPOTV(), DPPOKL(), VESPO()]
ON_POLICY_BY_LENGTH = [MiniRL(length_norm=True), GRPO(), GSPO(), SAPO()]
ON_POLICY_BY_GROUP = [CISPO(), DAPO()]


def names(pair) -> str:
    return repr(pair)[:50]


@pytest.mark.parametrize("pair", EVERYWHERE, ids=names)
def test_everywhere(pair) -> None:
    torch.testing.assert_close(*(gradient(objective, *drawn()) for objective in pair))


@pytest.mark.parametrize("pair", SINGLE, ids=names)
def test_of_single_tokens(pair) -> None:
    torch.testing.assert_close(*(gradient(objective, *drawn(torch.ones_like(LENGTHS))) for objective in pair))


@pytest.mark.parametrize("pair", ONE_ENGINE, ids=names)
def test_of_one_engine(pair) -> None:
    logprobs, tokens = drawn()
    tokens = replace(tokens, rollout_logprobs=tokens.old_logprobs)
    torch.testing.assert_close(*(gradient(objective, logprobs, tokens) for objective in pair))


@pytest.mark.parametrize("family", [ON_POLICY, ON_POLICY_BY_LENGTH, ON_POLICY_BY_GROUP], ids=names)
def test_on_policy(family) -> None:
    logprobs, tokens = drawn()
    tokens = replace(tokens, rollout_logprobs=logprobs, old_logprobs=logprobs)
    first, *others = (gradient(objective, logprobs, tokens) for objective in family)
    assert first.any()
    for other in others:
        torch.testing.assert_close(other, first)


def test_minirl_without_a_cap_is_decoupled_ppo_with_a_sum_over_tokens() -> None:
    logprobs, tokens = drawn()
    torch.testing.assert_close(gradient(MiniRL(weight_cap=None), logprobs, tokens), decoupled_ppo(logprobs, tokens))


def test_the_drawn_tokens_meet_clip_and_cap() -> None:
    """Else the list above would hold of anything."""
    logprobs, tokens = drawn()
    terms = MiniRL(weight_cap=1.3)(logprobs, tokens, responses=6, groups=1)
    assert terms.clipped.low.any()
    assert terms.clipped.high.any()
    assert terms.truncated.any()
    different = [gradient(o, logprobs, tokens) for o in (MiniRL(), UNCAPPED, DPPOTV(), GRPO(), GSPO(), MinPRO())]
    assert all(not torch.allclose(a, b) for i, a in enumerate(different) for b in different[:i])


def test_leave_one_out_is_the_group_mean_stretched() -> None:
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(leave_one_out(rewards), group_advantage(rewards, normalise=False) * 4 / 3)


@pytest.mark.parametrize("name", declared("objective"))
def test_a_recipe_and_the_library_mean_the_same(name: str) -> None:
    tree = {"model": {"kind": "tiny"}, "task": {"kind": "chains"}, "objective": name}
    built = build(resolve(tree, source="test").objective)
    assert type(built) is getattr(algo, declared("objective")[name].name)
    assert built == type(built)()
