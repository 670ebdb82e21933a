"""Objectives against numbers worked by hand.

token    1     2     3     4     5
π_θ     .50   .30   .20   .20   .60
π_old   .40   .30   .40   .40   .30
μ_old   .25   .10   .02   .10   .30
r       1.25  1.00  0.50  0.50  2.00    π_θ/π_old
w       2     3     10    2     2       π_θ/μ_old, truncated at 5
Â       1     −1    1     −1    1
M       1     1     1     0     0       ε = .2 / .27
|y|     2     2     3     3     3

One group of two responses. An advantage belongs to a response; here it differs by token, which no objective minds.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steadyrl.algo import CISPO, GRPO, MiniRL, Objective, Tokens

THETA = torch.tensor([0.50, 0.30, 0.20, 0.20, 0.60]).log()
TOKENS = Tokens(
    rollout_logprobs=torch.tensor([0.25, 0.10, 0.02, 0.10, 0.30]).log(),
    old_logprobs=torch.tensor([0.40, 0.30, 0.40, 0.40, 0.30]).log(),
    advantages=torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]),
    response_tokens=torch.tensor([2.0, 2.0, 3.0, 3.0, 3.0]),
    group_tokens=torch.full((5,), 5.0),
    response=torch.tensor([0, 0, 1, 1, 1]),
)
ALL = [MiniRL(), MiniRL(length_norm=True, weight_cap=None), MiniRL(clip=False), GRPO(), CISPO()]


def take(tokens: Tokens, index: Tensor) -> Tokens:
    return Tokens(**{name: getattr(tokens, name)[index] for name in Tokens.__slots__})


def value_and_gradient(
    objective: Objective, logprobs: Tensor, tokens: Tokens, *, responses: int = 2, groups: int = 1
) -> tuple[Tensor, Tensor]:
    leaf = logprobs.clone().requires_grad_()
    surrogate = objective(leaf, tokens, responses=responses, groups=groups).surrogate
    surrogate.sum().backward()
    assert leaf.grad is not None
    return surrogate.detach(), leaf.grad


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (MiniRL(), [2 / 2, -3 / 2, 5 / 2, 0, 0]),  # M min(w, 5) Â / R
        (MiniRL(clip=False), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 2 / 2]),
        (MiniRL(weight_cap=None), [2 / 2, -3 / 2, 10 / 2, 0, 0]),
        (MiniRL(importance_sampling=False), [1.25 / 2, -1 / 2, 0.5 / 2, 0, 0]),  # r takes the place of w
        (MiniRL(length_norm=True), [2 / 4, -3 / 4, 5 / 6, 0, 0]),  # R|y| = 4 and 6
        (MiniRL(clip_high=0.2), [0, -3 / 2, 5 / 2, 0, 0]),
        (MiniRL(clip_low=0.6), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 0]),
        (MiniRL(weight_cap=2.5), [2 / 2, -2.5 / 2, 2.5 / 2, 0, 0]),
        (GRPO(), [1.25 / 4, -1 / 4, 0.5 / 6, 0, 0]),  # rÂ/(R|y|)
        (CISPO(), [1.25 / 5, -1 / 5, 0.8 / 5, -0.8 / 5, 1.27 / 5]),  # r bounded to [.8, 1.27], Σ|y| = 5
    ],
    ids=repr,
)
def test_gradient(objective: Objective, expected: list[float]) -> None:
    _, gradient = value_and_gradient(objective, THETA, TOKENS)
    torch.testing.assert_close(gradient, torch.tensor(expected))
    assert gradient[torch.tensor(expected) == 0].eq(0).all()  # exactly


@pytest.mark.parametrize("objective", [MiniRL(), CISPO()])
def test_value_is_weight_times_logprob(objective: Objective) -> None:
    value, gradient = value_and_gradient(objective, THETA, TOKENS)
    torch.testing.assert_close(value, gradient * THETA)  # sg[weight]: linear in log π_θ, so gradient · log π_θ


def test_value_of_grpo() -> None:
    value, _ = value_and_gradient(GRPO(), THETA, TOKENS)
    # token 4: min(−.5, −.8) = −.8; token 5: min(2, 1.27) = 1.27
    torch.testing.assert_close(value, torch.tensor([1.25 / 4, -1 / 4, 0.5 / 6, -0.8 / 6, 1.27 / 6]))


def test_grpo_at_the_boundary_keeps_its_whole_gradient() -> None:
    flat = torch.zeros(2)
    tokens = Tokens(
        rollout_logprobs=flat,
        old_logprobs=flat,
        advantages=torch.tensor([1.0, -1.0]),
        response_tokens=torch.ones(2),
        group_tokens=torch.ones(2),
        response=torch.arange(2),
    )
    at = torch.tensor([1.25, 0.75]).log()
    _, gradient = value_and_gradient(GRPO(clip_low=0.25, clip_high=0.25), at, tokens, responses=1)
    torch.testing.assert_close(gradient, torch.tensor([1.25, -0.75]))


@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [(MiniRL(), [3], [4]), (GRPO(), [3], [4]), (CISPO(), [], []), (MiniRL(clip=False), [], [])],
)
def test_clipped_tokens_are_reported(objective: Objective, low: list[int], high: list[int]) -> None:
    clipped = objective(THETA, TOKENS, responses=2, groups=1).clipped
    assert clipped.low.nonzero().flatten().tolist() == low
    assert clipped.high.nonzero().flatten().tolist() == high


@pytest.mark.parametrize(
    ("objective", "truncated"),
    [
        (MiniRL(), [2]),  # 10 > 5
        (MiniRL(weight_cap=1.5, clip=False), [0, 1, 2, 3, 4]),
        (MiniRL(weight_cap=None), []),
        (MiniRL(importance_sampling=False, weight_cap=1.5), [4]),  # r in place of w
        (GRPO(), []),
        (CISPO(), [4]),  # 2 > 1.27; raising ½ to .8 is no truncation
    ],
    ids=repr,
)
def test_truncated_weights_are_reported(objective: Objective, truncated: list[int]) -> None:
    terms = objective(THETA, TOKENS, responses=2, groups=1)
    assert terms.truncated.nonzero().flatten().tolist() == truncated


def test_a_weight_at_the_cap_is_whole() -> None:
    once = take(TOKENS, torch.tensor([1]))
    terms = MiniRL(weight_cap=1.0)(once.rollout_logprobs, once, responses=1, groups=1)  # w = 1
    assert not terms.truncated.any()


def test_who_divides_by_the_standard_deviation() -> None:
    assert [objective.normalised for objective in (MiniRL(), GRPO(), CISPO())] == [False, True, True]


def test_a_clipped_token_whose_weight_overflows_is_zero() -> None:
    # π_θ/μ_old = e^95 is infinite in float32
    low = torch.tensor([-100.0, -100.0])
    tokens = Tokens(
        rollout_logprobs=low,
        old_logprobs=low,
        advantages=torch.tensor([1.0, 1.0]),
        response_tokens=torch.full((2,), 2.0),
        group_tokens=torch.full((2,), 2.0),
        response=torch.zeros(2, dtype=torch.long),
    )
    logprobs = torch.tensor([-5.0, -100.0])
    value, gradient = value_and_gradient(MiniRL(weight_cap=None), logprobs, tokens, responses=1)
    assert value[0] == 0.0
    assert gradient.tolist() == [0.0, 1.0]


def test_on_policy_minirl_is_the_plain_policy_gradient() -> None:
    tokens = Tokens(
        rollout_logprobs=THETA,
        old_logprobs=THETA,
        advantages=TOKENS.advantages,
        response_tokens=TOKENS.response_tokens,
        group_tokens=TOKENS.group_tokens,
        response=TOKENS.response,
    )
    _, gradient = value_and_gradient(MiniRL(), THETA, tokens, responses=4)
    assert torch.equal(gradient, TOKENS.advantages / 4)


def test_denominators_count_what_they_say() -> None:
    for objective in ALL:
        once, _ = value_and_gradient(objective, THETA, TOKENS, responses=2, groups=1)
        more_responses, _ = value_and_gradient(objective, THETA, TOKENS, responses=6, groups=1)
        more_groups, _ = value_and_gradient(objective, THETA, TOKENS, responses=2, groups=3)
        by_groups = isinstance(objective, CISPO)
        torch.testing.assert_close(more_responses, once if by_groups else once / 3)
        torch.testing.assert_close(more_groups, once / 3 if by_groups else once)


logs = st.floats(-8.0, 0.0, width=32)
token = st.tuples(logs, logs, logs, st.sampled_from([-1.0, -0.25, 0.0, 0.5]), st.integers(1, 9), st.integers(9, 30))


@settings(deadline=None)
@given(data=st.lists(token, min_size=1, max_size=12), cuts=st.sets(st.integers(1, 11)), mix=st.randoms())
def test_any_split_in_any_order_is_the_same_objective(data: list, cuts: set[int], mix) -> None:
    columns = torch.tensor(data, dtype=torch.float64).unbind(dim=1)
    logprobs, tokens = columns[0], Tokens(**dict(zip(Tokens.__slots__, columns[1:], strict=True)))
    order = torch.tensor(mix.sample(range(len(data)), len(data)))
    parts = order.tensor_split(sorted(c for c in cuts if c < len(data)))
    for objective in ALL:
        value, gradient = value_and_gradient(objective, logprobs, tokens)
        split = [value_and_gradient(objective, logprobs[part], take(tokens, part)) for part in parts]
        torch.testing.assert_close(torch.stack([v.sum() for v, _ in split]).sum(), value.sum())
        torch.testing.assert_close(torch.cat([g for _, g in split]), gradient[order])
