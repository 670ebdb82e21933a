"""Objectives against their defining expectations, summed over every response that there is, in float64."""

import math
from dataclasses import replace
from statistics import linear_regression

import pytest
import torch
from tabular import (
    CHOSEN,
    LENGTHS,
    PREFIXES,
    RESPONSE,
    RESPONSES,
    REWARDS,
    ROWS,
    all_tokens,
    by_response,
    expected_reward,
    gradient,
    logprobs,
    policy,
)
from torch import Tensor

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
    PrefixIS,
    Reinforce,
    group_advantage,
    leave_one_out,
    value_gap,
)
from steadyrl.algo.surrogate import surrogate_error, worst_delta

OLD = policy(1)
MU = OLD + 0.3 * policy(2)
THETA = OLD + 0.4 * policy(3)
SEQUENCE = Composed(level="sequence", weight_cap=None, trust="none")


def clip(r: float, a: float, low: float, high: float) -> bool:
    return (a > 0 and r > 1 + high) or (a < 0 and r < 1 - low)


def dppo(p: float, m: float, a: float, far: bool) -> float:
    return 0.0 if far and ((a > 0 and p > m) or (a < 0 and p < m)) else p / m


def binary_kl(m: float, p: float) -> float:
    return m * math.log(m / p) + (1 - m) * math.log((1 - m) / (1 - p))


def sapo(r: float, a: float) -> float:
    tau = 1.0 if a > 0 else 1.05
    gate = 1 / (1 + math.exp(-tau * (r - 1)))
    return 4 * gate * (1 - gate) * r


def vespo(w: float, a: float) -> float:
    return w**2 * math.exp(3 * (1 - w)) if a > 0 else w**3 * math.exp(2 * (1 - w))


def opsm(p: list[float], m: list[float], a: float, threshold: float) -> bool:
    return a < 0 and sum(math.log(z / x) for x, z in zip(p, m, strict=True)) / len(p) > threshold


# The weight of ∇log π(y_t), mask included, written from the equations for one response in plain numbers:
# π_θ, π_old and μ_old of its tokens, and Â.
WEIGHTS = {
    Reinforce(): lambda p, o, m, a: [1.0 for _ in p],
    MiniRL(): lambda p, o, m, a: [
        0.0 if clip(x / y, a, 0.2, 0.27) else min(x / z, 5.0) for x, y, z in zip(p, o, m, strict=True)
    ],
    MiniRL(importance_sampling=False, clip=False): lambda p, o, m, a: [x / y for x, y in zip(p, o, strict=True)],
    MiniRL(length_norm=True, weight_cap=1.1, clip=False): lambda p, o, m, a: [
        min(x / z, 1.1) / len(p) for x, z in zip(p, m, strict=True)
    ],
    MinPRO(clip=False, weight_cap=None): lambda p, o, m, a: [
        p[t] / m[t] * min([p[s] / m[s] for s in range(t)], default=1.0) for t in range(len(p))
    ],
    PrefixIS(): lambda p, o, m, a: [math.prod(p[: t + 1]) / math.prod(m[: t + 1]) for t in range(len(p))],
    GRPO(): lambda p, o, m, a: [
        0.0 if clip(x / y, a, 0.2, 0.27) else x / y / len(p) for x, y in zip(p, o, strict=True)
    ],
    DrGRPO(): lambda p, o, m, a: [0.0 if clip(x / y, a, 0.2, 0.2) else x / y for x, y in zip(p, o, strict=True)],
    DAPO(): lambda p, o, m, a: [
        0.0 if clip(x / y, a, 0.2, 0.28) else x / y / sum(LENGTHS) for x, y in zip(p, o, strict=True)
    ],
    CISPO(): lambda p, o, m, a: [min(max(x / y, 0.8), 1.27) / sum(LENGTHS) for x, y in zip(p, o, strict=True)],
    GSPO(): lambda p, o, m, a: [
        0.0 if clip(s := (math.prod(p) / math.prod(o)) ** (1 / len(p)), a, 3e-4, 4e-4) else s / len(p) for _ in p
    ],
    OPSM(threshold=0.02): lambda p, o, m, a: [
        0.0 if clip(x / y, a, 0.2, 0.27) or opsm(p, m, a, 0.02) else x / y / len(p) for x, y in zip(p, o, strict=True)
    ],
    DPPOTV(): lambda p, o, m, a: [dppo(x, z, a, abs(x - z) > 0.15) for x, z in zip(p, m, strict=True)],
    DPPOKL(): lambda p, o, m, a: [dppo(x, z, a, binary_kl(z, x) > 0.05) for x, z in zip(p, m, strict=True)],
    VESPO(): lambda p, o, m, a: [vespo(math.prod(p) / math.prod(m), a) for _ in p],
    SAPO(): lambda p, o, m, a: [sapo(x / y, a) / len(p) for x, y in zip(p, o, strict=True)],
    Composed(ratio="mismatch", outside="mask", weight_floor=0.8, weight_cap=1.2, trust="none"): (
        lambda p, o, m, a: [  # IcePop
            x / z if 0.8 <= y / z <= 1.2 else 0.0 for x, y, z in zip(p, o, m, strict=True)
        ]
    ),
    SEQUENCE: lambda p, o, m, a: [math.prod(p) / math.prod(m) for _ in p],
}


@pytest.mark.parametrize("objective", WEIGHTS, ids=lambda o: repr(o)[:60])
def test_the_gradient_is_the_defining_expectation(objective) -> None:
    probabilities = [table.softmax(dim=1) for table in (THETA, OLD, MU)]
    expected, masked, total = torch.zeros_like(THETA), 0, 0
    for y, reward in zip(RESPONSES, REWARDS.tolist(), strict=True):
        rows = [PREFIXES.index(y[:t]) for t in range(len(y))]
        p, o, m = ([table[row, token].item() for row, token in zip(rows, y, strict=True)] for table in probabilities)
        for row, token, weight in zip(rows, y, WEIGHTS[objective](p, o, m, reward), strict=True):
            slope = torch.eye(3, dtype=torch.float64)[token] - probabilities[0][row]  # ∇log π by the logits
            expected[row] += math.prod(m) * reward * weight * slope
            masked, total = masked + (weight == 0.0), total + 1
    assert masked < total
    torch.testing.assert_close(gradient(objective, THETA, all_tokens(OLD, MU)), expected, rtol=1e-12, atol=1e-14)


def slope(errors: list[float], sizes: list[float]) -> float:
    """Of log error over log size, by least squares."""
    return linear_regression([math.log(x) for x in sizes], [math.log(x) for x in errors]).slope


def test_the_surrogate_errs_by_delta_squared_in_value_and_delta_in_gradient() -> None:
    sizes, values, gradients = [0.08, 0.04, 0.02, 0.01], [], []
    for size in sizes:
        theta = (MU + size * policy(4)).requires_grad_()
        (exact,) = torch.autograd.grad(expected_reward(theta), theta)
        token_level = gradient(MiniRL(clip=False, weight_cap=None), theta.detach(), all_tokens(OLD, MU))
        gradients.append(((token_level - exact).norm() / exact.norm()).item())
        first_order = by_response((logprobs(theta) - logprobs(MU)).expm1())
        surrogate = (by_response(logprobs(MU)).exp() * REWARDS * (1 + first_order)).sum()
        values.append((surrogate - expected_reward(theta)).abs().item())
    assert 1.8 < slope(values, sizes) < 2.2
    assert 0.9 < slope(gradients, sizes) < 1.1


def test_the_identity_of_the_values() -> None:
    """J(π) − J(μ) = E_μ[R Σ(r−1)] − Δ."""
    log_ratio = logprobs(THETA) - logprobs(MU)
    probability = by_response(logprobs(MU)).exp()
    first_order = (probability * REWARDS * by_response(log_ratio.expm1())).sum()
    delta = (probability * REWARDS * value_gap(log_ratio, RESPONSE).difference).sum()
    assert (expected_reward(THETA) - expected_reward(MU) - (first_order - delta)).abs() < 1e-10
    bound = (probability * REWARDS.abs() * value_gap(log_ratio, RESPONSE).bound).sum()
    assert delta.abs() < bound
    divergence = 0.5 * (THETA.softmax(1) - MU.softmax(1)).abs().sum(1).max().item()
    assert bound <= worst_delta(tokens=3, divergence=divergence, reward=REWARDS.abs().max().item())


def test_the_estimate_of_the_error_is_that_of_the_sum_over_responses() -> None:
    log_ratio = logprobs(THETA) - logprobs(MU)
    ratio = by_response(log_ratio).exp()
    gap = 1 + by_response(log_ratio.expm1()) - ratio
    said = surrogate_error(value_gap(log_ratio, RESPONSE), REWARDS)
    assert said["delta"] == pytest.approx((REWARDS * gap).mean().item())
    assert said["value_gap"] == pytest.approx(gap.abs().mean().item())
    margin = 1.96 * (REWARDS * gap).std().item() / len(RESPONSES) ** 0.5
    assert said["delta_high"] - said["delta"] == pytest.approx(margin)
    assert said["delta"] - said["delta_low"] == pytest.approx(margin)


@pytest.mark.parametrize("size", [2, 3])
def test_the_estimate_from_groups_has_the_mean_delta(size: int) -> None:
    """Over every group of responses that μ may sample, the mean of (R − mean of the others) · difference is Δ."""
    chance = by_response(logprobs(MU)).exp()
    gap = value_gap(logprobs(THETA) - logprobs(MU), RESPONSE)
    delta = (chance * REWARDS * gap.difference).sum().item()
    drawn = torch.cartesian_prod(*[torch.arange(len(RESPONSES))] * size)
    probability = chance[drawn].prod(dim=1)
    mean = (probability[:, None] * leave_one_out(REWARDS[drawn]) * gap.difference[drawn] / size).sum().item()
    assert mean == pytest.approx(delta, rel=1e-9)
    # a mean over the moved responses alone, weighed by R − mean of the group, is another number
    centred = group_advantage(REWARDS[drawn], normalise=False)
    assert (probability[:, None] * centred * gap.difference[drawn] / size).sum().item() != pytest.approx(delta, rel=0.1)


def exact_gradient(logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(expected_reward(leaf), leaf)
    return found


def test_the_sequence_level_is_unbiased_at_any_distance() -> None:
    torch.testing.assert_close(gradient(SEQUENCE, THETA, all_tokens(OLD, MU)), exact_gradient(THETA))


def test_the_prefix_weight_is_unbiased_given_the_value_after_each_token() -> None:
    """Q(y_≤t) = E_π[R | y_≤t] for each token, times μ(y), as the advantage."""
    chance = by_response(logprobs(THETA)).exp()
    values = []
    for y in RESPONSES:
        for t in range(len(y)):
            same = torch.tensor([z[: t + 1] == y[: t + 1] for z in RESPONSES])
            values.append((chance * REWARDS)[same].sum() / chance[same].sum())
    tokens = all_tokens(OLD, MU)
    of_mu = by_response(logprobs(MU)).exp()[RESPONSE]
    exact = replace(tokens, advantages=torch.stack(values) * of_mu)
    torch.testing.assert_close(gradient(PrefixIS(), THETA, exact), exact_gradient(THETA))
    # with the reward of the whole response, what follows a token is drawn from μ: not ∇J
    assert (gradient(PrefixIS(), THETA, tokens) - exact_gradient(THETA)).norm() > 0.01 * exact_gradient(THETA).norm()


@pytest.mark.parametrize(
    "objective",
    [Reinforce(), MiniRL(), MinPRO(), PrefixIS(), DrGRPO(), DPPOTV(), DPPOKL(), VESPO(), SEQUENCE, Composed()],
    ids=lambda o: repr(o)[:60],
)
def test_on_policy_all_members_without_length_are_the_policy_gradient(objective) -> None:
    torch.testing.assert_close(gradient(objective, MU, all_tokens(MU, MU)), exact_gradient(MU))


def test_the_table_is_a_language() -> None:
    assert by_response(logprobs(THETA)).exp().sum().item() == pytest.approx(1.0)
    assert len(ROWS) == len(CHOSEN) == sum(LENGTHS)
