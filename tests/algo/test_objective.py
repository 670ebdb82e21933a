"""Objectives against numbers worked by hand.

token    1     2     3     4     5
π_θ     .50   .30   .20   .20   .60
π_old   .40   .30   .40   .40   .30
μ_old   .25   .10   .02   .10   .30
r       1.25  1.00  0.50  0.50  2.00    π_θ/π_old
w       2     3     10    2     2       π_θ/μ_old
Â       1     −1    1     −1    1
M       1     1     1     0     0       ε = .2 / .27, anchored at π_old
|y|     2     2     3     3     3

One group of two responses, tokens 1–2 and 3–5. An advantage belongs to a response; here it differs by token, which no
objective minds. R = 2 responses, Σ|y| = 5.
"""

import itertools
import math
from dataclasses import asdict, replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    Objective,
    PrefixIS,
    Reinforce,
    Tokens,
    refuse_broken,
)
from steadyrl.algo.objectives.composed import Trust

THETA = torch.tensor([0.50, 0.30, 0.20, 0.20, 0.60]).log()
TOKENS = Tokens(
    rollout_logprobs=torch.tensor([0.25, 0.10, 0.02, 0.10, 0.30]).log(),
    old_logprobs=torch.tensor([0.40, 0.30, 0.40, 0.40, 0.30]).log(),
    advantages=torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]),
    response_tokens=torch.tensor([2.0, 2.0, 3.0, 3.0, 3.0]),
    group_tokens=torch.full((5,), 5.0),
    response=torch.tensor([0, 0, 1, 1, 1]),
)
TRUSTS = get_args(Trust)
ALL = [
    Reinforce(),
    MiniRL(),
    MiniRL(length_norm=True, weight_cap=None),
    MiniRL(clip=False),
    MinPRO(),
    PrefixIS(),
    GRPO(),
    DrGRPO(),
    DAPO(),
    CISPO(),
    GSPO(),
    OPSM(),
    DPPOTV(),
    DPPOKL(),
    VESPO(),
    SAPO(),
    *(Composed(level=level, outside="mask", weight_floor=0.1) for level in ("sequence", "geometric")),
    *(Composed(ratio="mismatch", trust=trust) for trust in TRUSTS),
]
S0, S1 = 1.25**0.5, 0.5 ** (1 / 3)  # geometric means of r: √(1.25 · 1), (.5 · .5 · 2)^⅓


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
        (Reinforce(), [1 / 2, -1 / 2, 1 / 2, -1 / 2, 1 / 2]),
        (MiniRL(), [2 / 2, -3 / 2, 5 / 2, 0, 0]),  # M min(w, 5) Â / R
        (MiniRL(clip=False), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 2 / 2]),
        (MiniRL(weight_cap=None), [2 / 2, -3 / 2, 10 / 2, 0, 0]),
        (MiniRL(importance_sampling=False), [1.25 / 2, -1 / 2, 0.5 / 2, 0, 0]),  # r takes the place of w
        (MiniRL(length_norm=True), [2 / 4, -3 / 4, 5 / 6, 0, 0]),  # R|y| = 4 and 6
        (MiniRL(clip_high=0.2), [0, -3 / 2, 5 / 2, 0, 0]),
        (MiniRL(clip_low=0.6), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 0]),
        (MiniRL(weight_cap=2.5), [2 / 2, -2.5 / 2, 2.5 / 2, 0, 0]),
        # w times the least w before it: 2, 3·2 | 10, 2·10, 2·2
        (MinPRO(clip=False, weight_cap=None), [2 / 2, -6 / 2, 10 / 2, -20 / 2, 4 / 2]),
        (MinPRO(), [2 / 2, -5 / 2, 5 / 2, 0, 0]),
        (PrefixIS(), [2 / 2, -6 / 2, 10 / 2, -20 / 2, 40 / 2]),  # 2, 2·3 | 10, 10·2, 10·2·2
        (PrefixIS(weight_cap=15.0), [2 / 2, -6 / 2, 10 / 2, -15 / 2, 15 / 2]),
        (GRPO(), [1.25 / 4, -1 / 4, 0.5 / 6, 0, 0]),  # rÂ/(R|y|)
        (DrGRPO(), [0, -1 / 2, 0.5 / 2, 0, 0]),  # 1.25 > 1.2
        (DrGRPO(clip_high=0.27), [1.25 / 2, -1 / 2, 0.5 / 2, 0, 0]),
        (DAPO(), [1.25 / 5, -1 / 5, 0.5 / 5, 0, 0]),
        (CISPO(), [1.25 / 5, -1 / 5, 0.8 / 5, -0.8 / 5, 1.27 / 5]),  # r bounded to [.8, 1.27], Σ|y| = 5
        (GSPO(), [0, -S0 / 4, S1 / 6, 0, S1 / 6]),  # S0 = 1.12 is too high for Â>0, S1 = .79 too low for Â<0
        (GSPO(clip_low=0.25, clip_high=0.15), [S0 / 4, -S0 / 4, S1 / 6, -S1 / 6, S1 / 6]),
        (DPPOTV(), [0, -3 / 2, 0, -2 / 2, 0]),  # |μ−π| = .25 .20 .18 .10 .30; all w > 1, so outward is Â > 0
        (DPPOTV(threshold=0.22), [0, -3 / 2, 10 / 2, -2 / 2, 0]),
        (DPPOKL(), [0, -3 / 2, 0, -2 / 2, 0]),  # token 1: .25 ln ½ + .75 ln 1.5 = .131; 3: .153; 5: .184
        (DPPOKL(threshold=0.14), [2 / 2, -3 / 2, 0, -2 / 2, 0]),
        (Composed(), [2 / 2, -3 / 2, 5 / 2, 0, 0]),  # MiniRL
        (Composed(trust="none"), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 2 / 2]),
        (Composed(trust="rollout_clip"), [0, -3 / 2, 0, -2 / 2, 0]),  # all w > 1.27
        (Composed(trust="tv", threshold=0.22), [0, -3 / 2, 5 / 2, -2 / 2, 0]),
        (Composed(trust="kl", threshold=0.14), [2 / 2, -3 / 2, 0, -2 / 2, 0]),
        # mean −log r of the second response is (ln 2 + ln 2 − ln 2)/3 = .231; token 4 alone has Â < 0 there
        (Composed(trust="old_sequence_mask", threshold=0.23), [2 / 2, -3 / 2, 5 / 2, 0, 2 / 2]),
        (Composed(trust="old_sequence_mask", threshold=0.24), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 2 / 2]),
        (Composed(trust="clip+old_sequence_mask", threshold=0.23, clip_low=0.6), [2 / 2, -3 / 2, 5 / 2, 0, 0]),
        (Composed(trust="clip+old_sequence_mask", threshold=0.24, clip_low=0.6), [2 / 2, -3 / 2, 5 / 2, -2 / 2, 0]),
        # mean −log w: −(ln 2 + ln 3)/2 = −.896 and −(ln 10 + 2 ln 2)/3 = −1.230
        (Composed(trust="sequence_mask", threshold=-0.9), [2 / 2, 0, 5 / 2, -2 / 2, 2 / 2]),
        (Composed(trust="sequence_mask", threshold=-1.24), [2 / 2, 0, 5 / 2, 0, 2 / 2]),
        (Composed(trust="clip+sequence_mask", threshold=-0.9, clip_low=0.6), [2 / 2, 0, 5 / 2, -2 / 2, 0]),
        (Composed(trust="rollout_clip+sequence_mask", threshold=-0.9), [0, 0, 0, -2 / 2, 0]),
        (OPSM(threshold=-1.0), [1.25 / 4, 0, 0.5 / 6, 0, 0]),  # GRPO less token 2
        (OPSM(threshold=-0.8), [1.25 / 4, -1 / 4, 0.5 / 6, 0, 0]),
        # outward are tokens 1, 3 and 5; (log w)² = .48 | 5.3, .48; means of the smallest: .48 | .48, 2.9
        (Composed(trust="second_moment", threshold=0.04), [0, -3 / 2, 0, -2 / 2, 0]),
        (Composed(trust="second_moment", threshold=0.49), [2 / 2, -3 / 2, 0, -2 / 2, 2 / 2]),
        (Composed(trust="none", ratio="none"), [1 / 2, -1 / 2, 1 / 2, -1 / 2, 1 / 2]),
        (Composed(trust="none", ratio="staleness"), [1.25 / 2, -1 / 2, 0.5 / 2, -0.5 / 2, 2 / 2]),
        # π_old/μ = 1.6 3 20 4 1, cut at 5, times r
        (Composed(trust="none", ratio="mismatch"), [2 / 2, -3 / 2, 2.5 / 2, -2 / 2, 2 / 2]),
        (  # IcePop
            Composed(trust="none", ratio="mismatch", outside="mask", weight_floor=1.5),
            [2 / 2, -3 / 2, 0, -2 / 2, 0],
        ),
        (Composed(trust="none", outside="mask", weight_cap=None, weight_floor=2.5), [0, -3 / 2, 10 / 2, 0, 0]),
        (Composed(trust="none", level="sequence", weight_cap=None), [6 / 2, -6 / 2, 40 / 2, -40 / 2, 40 / 2]),
        (  # the same beside a clip
            Composed(ratio="mismatch", outside="mask", weight_floor=0.5, weight_cap=3.5),
            [2 / 2, -3 / 2, 0, 0, 0],
        ),
        (Composed(mean="own_tokens"), [2 / 4, -3 / 4, 5 / 6, 0, 0]),
        (Composed(mean="group_tokens"), [2 / 5, -3 / 5, 5 / 5, 0, 0]),
        (Composed(clip_low=0.6, clip_high=0.2), [0, -3 / 2, 5 / 2, -2 / 2, 0]),
    ],
    ids=repr,
)
def test_gradient(objective: Objective, expected: list[float]) -> None:
    _, gradient = value_and_gradient(objective, THETA, TOKENS)
    torch.testing.assert_close(gradient, torch.tensor(expected))
    assert gradient[torch.tensor(expected) == 0].eq(0).all()  # exactly


def test_vespo_by_hand() -> None:
    # W = 2 with Â = 1: 2² e^{3(1−2)}; W = ½ · 3/2 = ¾ with Â = −1: (¾)³ e^{2(1−¾)}
    logprobs = torch.tensor([0.4, 0.1, 0.9]).log()
    tokens = replace(
        take(TOKENS, torch.tensor([0, 2, 3])),
        rollout_logprobs=torch.tensor([0.2, 0.2, 0.6]).log(),
        advantages=torch.tensor([1.0, -1.0, -1.0]),
        response=torch.tensor([0, 1, 1]),
    )
    up, down = 4 * math.exp(-3), 27 / 64 * math.exp(0.5)
    value, gradient = value_and_gradient(VESPO(), logprobs, tokens)
    torch.testing.assert_close(gradient, torch.tensor([up, -down, -down]) / 2)
    torch.testing.assert_close(value, gradient * logprobs)
    other = VESPO(rise_positive=1.0, fall_positive=0.5, rise_negative=2.0, fall_negative=4.0)
    _, gradient = value_and_gradient(other, logprobs, tokens)
    up, down = 2 * math.exp(-0.5), 9 / 16 * math.exp(1)
    torch.testing.assert_close(gradient, torch.tensor([up, -down, -down]) / 2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("positive", "negative"), [(1.0, 1.05), (2.0, 0.5)])
def test_sapo_by_hand(positive: float, negative: float) -> None:
    value, gradient = value_and_gradient(
        SAPO(temperature_positive=positive, temperature_negative=negative), THETA, TOKENS
    )
    r, a, n = [1.25, 1.0, 0.5, 0.5, 2.0], [1, -1, 1, -1, 1], [4, 4, 6, 6, 6]
    tau = [positive if x > 0 else negative for x in a]
    gate = [sigmoid(t * (x - 1)) for t, x in zip(tau, r, strict=True)]
    columns = list(zip(tau, gate, r, a, n, strict=True))
    torch.testing.assert_close(value, torch.tensor([4 / t * g * s / k for t, g, _, s, k in columns]))
    torch.testing.assert_close(gradient, torch.tensor([4 * g * (1 - g) * x * s / k for _, g, x, s, k in columns]))
    defaults = value_and_gradient(SAPO(), THETA, TOKENS)[1]
    assert torch.equal(defaults, gradient) == (positive == 1.0)


@pytest.mark.parametrize("objective", [Reinforce(), MiniRL(), MinPRO(), PrefixIS(), CISPO(), DPPOTV(), Composed()])
def test_value_is_weight_times_logprob(objective: Objective) -> None:
    value, gradient = value_and_gradient(objective, THETA, TOKENS)
    torch.testing.assert_close(value, gradient * THETA)  # sg[weight]: linear in log π_θ, so gradient · log π_θ


def test_value_of_the_clipped_ratios() -> None:
    value, _ = value_and_gradient(GRPO(), THETA, TOKENS)
    # token 4: min(−.5, −.8) = −.8; token 5: min(2, 1.27) = 1.27
    torch.testing.assert_close(value, torch.tensor([1.25 / 4, -1 / 4, 0.5 / 6, -0.8 / 6, 1.27 / 6]))
    value, _ = value_and_gradient(GSPO(), THETA, TOKENS)
    torch.testing.assert_close(value, torch.tensor([1.0004 / 4, -S0 / 4, S1 / 6, -0.9997 / 6, S1 / 6]))


QUARTER = {"clip_low": 0.25, "clip_high": 0.25}
CLIPS = [kind(**QUARTER) for kind in (MiniRL, MinPRO, GRPO, DrGRPO, DAPO, GSPO)]


@pytest.mark.parametrize("objective", [*CLIPS, *(Composed(trust=t, **QUARTER) for t in ("clip", "rollout_clip"))])
def test_at_the_boundary_the_whole_gradient_is_kept(objective: Objective) -> None:
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
    _, gradient = value_and_gradient(objective, at, tokens, responses=1)
    torch.testing.assert_close(gradient, torch.tensor([1.25, -0.75]))
    _, gradient = value_and_gradient(objective, at + torch.tensor([1e-6, -1e-6]), tokens, responses=1)
    assert gradient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("objective", "low", "high"),
    [
        (MiniRL(), [3], [4]),
        (GRPO(), [3], [4]),
        (GSPO(), [3], [0]),
        (DPPOTV(), [], [0, 2, 4]),
        *((o, [], []) for o in (CISPO(), MiniRL(clip=False), Reinforce(), PrefixIS(), VESPO(), SAPO())),
    ],
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
        (MinPRO(), [1, 2, 3]),  # 6, 10, 20
        (PrefixIS(), []),
        (PrefixIS(weight_cap=15.0), [3, 4]),
        (CISPO(), [4]),  # 2 > 1.27; raising ½ to .8 is no truncation
        (Composed(), [2]),
        (Composed(outside="mask", weight_floor=2.5), [0, 2, 3, 4]),
        *((o, []) for o in (GRPO(), GSPO(), DPPOTV(), DPPOKL(), VESPO(), SAPO(), Reinforce())),
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


CLIPPED = {"clip_low": 0.2, "clip_high": 0.27}
SWITCHES = {"clip": True, "importance_sampling": True, "weight_cap": 5.0, "length_norm": False}
PARTS = {"ratio": "product", "level": "token", "outside": "truncate", "weight_floor": 0.0, "trust": "clip"}
VESPO_DEFAULTS = {"rise_positive": 2.0, "fall_positive": 3.0, "rise_negative": 3.0, "fall_negative": 2.0}
SOURCED = [  # class, denominator, Â divided by the deviation, and the defaults of the source
    (Reinforce, "responses", False, {}),
    (MiniRL, "responses", False, CLIPPED | SWITCHES),
    (MinPRO, "responses", False, CLIPPED | SWITCHES),
    (PrefixIS, "responses", False, {"weight_cap": None}),
    (GRPO, "own_tokens", True, CLIPPED),
    (DrGRPO, "responses", False, {"clip_low": 0.2, "clip_high": 0.2}),
    (DAPO, "group_tokens", True, {"clip_low": 0.2, "clip_high": 0.28, "token_mean": "group"}),
    (CISPO, "group_tokens", True, CLIPPED),
    (GSPO, "own_tokens", True, {"clip_low": 3e-4, "clip_high": 4e-4}),
    (OPSM, "own_tokens", False, CLIPPED | {"threshold": 0.1}),
    (DPPOTV, "responses", False, {"threshold": 0.15}),
    (DPPOKL, "responses", False, {"threshold": 0.05}),
    (VESPO, "responses", False, VESPO_DEFAULTS),
    (SAPO, "own_tokens", True, {"temperature_positive": 1.0, "temperature_negative": 1.05}),
    (Composed, "responses", False, CLIPPED | PARTS | {"weight_cap": 5.0, "threshold": 0.15}),
]


@pytest.mark.parametrize(("kind", "mean", "normalised", "defaults"), SOURCED)
def test_defaults_are_those_of_the_source(kind, mean: str, normalised: bool, defaults: dict) -> None:
    assert asdict(kind()) == {"mean": mean, "normalised": normalised} | defaults
    for name, value in (("mean", "responses"), ("normalised", True)) if kind is not Composed else ():
        with pytest.raises(TypeError):  # they belong to the objective
            kind(**{name: value})


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_nothing_but_logprobs_has_a_gradient(objective: Objective) -> None:
    """A second derivative would show a weight that was not stopped."""
    leaf = THETA.clone().requires_grad_()
    surrogate = objective(leaf, TOKENS, responses=2, groups=1).surrogate
    (first,) = torch.autograd.grad(surrogate.sum(), leaf, create_graph=True)
    assert not first.requires_grad


def overflowing(objective: Objective, advantage: float) -> tuple[Tensor, Tensor]:
    """Two tokens of one response, the first with π_θ/μ_old = e^95, infinite in float32."""
    low = torch.tensor([-100.0, -100.0])
    tokens = Tokens(
        rollout_logprobs=low,
        old_logprobs=low,
        advantages=torch.tensor([advantage, 1.0]),
        response_tokens=torch.full((2,), 2.0),
        group_tokens=torch.full((2,), 2.0),
        response=torch.zeros(2, dtype=torch.long),
    )
    return value_and_gradient(objective, torch.tensor([-5.0, -100.0]), tokens, responses=1)


@pytest.mark.parametrize(
    "objective",
    [MiniRL(weight_cap=None), Composed(weight_cap=None), DrGRPO(), DPPOTV(threshold=1e-3), DPPOKL(threshold=1e-3)],
    ids=repr,
)
def test_a_clipped_token_whose_weight_overflows_has_no_gradient(objective: Objective) -> None:
    value, gradient = overflowing(objective, 1.0)
    assert value.isfinite().all()
    assert gradient.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("objective", [MiniRL(clip=False), CISPO(), VESPO(), SAPO(), MinPRO()], ids=repr)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_bounded_weight_never_overflows(objective: Objective, advantage: float) -> None:
    value, gradient = overflowing(objective, advantage)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if isinstance(objective, VESPO | SAPO):
        assert gradient[0] == 0.0


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_without_an_advantage_a_token_is_nothing(objective: Objective) -> None:
    value, gradient = overflowing(objective, 0.0)
    assert value[0] == 0.0
    assert gradient[0] == 0.0


@pytest.mark.parametrize("objective", ALL, ids=repr)
@pytest.mark.parametrize(("token", "own", "other"), [(0, slice(0, 2), slice(2, 5)), (3, slice(2, 5), slice(0, 2))])
def test_what_is_broken_is_seen_and_stays_in_its_response(
    objective: Objective, token: int, own: slice, other: slice
) -> None:
    broken = THETA.clone()
    broken[token] = math.nan
    value, gradient = value_and_gradient(objective, broken, TOKENS)
    clean, clean_gradient = value_and_gradient(objective, THETA, TOKENS)
    assert not value[own].sum().isfinite()  # seen, so that the update is not taken
    torch.testing.assert_close(value[other], clean[other])
    torch.testing.assert_close(gradient[other], clean_gradient[other])


@pytest.mark.parametrize("objective", ALL, ids=repr)
@pytest.mark.parametrize(("token", "other"), [(0, slice(2, 5)), (3, slice(0, 2))])
def test_a_token_of_probability_zero_is_no_nan_and_stays_in_its_response(
    objective: Objective, token: int, other: slice
) -> None:
    broken = THETA.clone()
    broken[token] = -math.inf
    value, gradient = value_and_gradient(objective, broken, TOKENS)
    clean, clean_gradient = value_and_gradient(objective, THETA, TOKENS)
    assert not value.isnan().any()
    assert gradient.isfinite().all()
    if not isinstance(objective, Reinforce | GRPO | SAPO):  # else the weight is 0: so is the term
        assert value[token] == 0.0
        assert gradient[token] == 0.0
    torch.testing.assert_close(value[other], clean[other])
    torch.testing.assert_close(gradient[other], clean_gradient[other])


def test_a_weight_of_one_shows_a_token_of_probability_zero() -> None:
    value, _ = value_and_gradient(Reinforce(), torch.tensor([-math.inf, *THETA[1:].tolist()]), TOKENS)
    assert value[0] == -math.inf


extreme = st.sampled_from([0.0, -1e-9, -0.7, -3.0, -100.0, -200.0, -math.inf])
wild = st.tuples(
    st.lists(st.tuples(extreme, extreme, extreme), min_size=1, max_size=4), st.sampled_from([-1.0, 0.0, 2.0])
)
MORE = [  # every part of every composition
    Composed(ratio=ratio, level=level, outside=outside, weight_cap=cap, trust="clip+sequence_mask")
    for ratio in ("product", "mismatch", "staleness", "none")
    for level in ("token", "prefix", "lowest_prefix", "sequence", "geometric")
    for outside in ("truncate", "mask")
    for cap in (None, 5.0)
]


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(data=st.lists(wild, min_size=1, max_size=3))
def test_extreme_ratios_are_no_nan_and_what_is_masked_is_exactly_nothing(data: list) -> None:
    logprobs, tokens = packed([(t, a, 9) for t, a in data], torch.float32)
    for objective in [*ALL, *MORE]:
        value, gradient = value_and_gradient(objective, logprobs, tokens)
        clipped = objective(logprobs, tokens, responses=2, groups=1).clipped
        assert not value.isnan().any(), objective
        assert not gradient.isnan().any(), objective
        assert gradient[~clipped.kept | (tokens.advantages == 0)].eq(0).all(), objective
        if isinstance(objective, GRPO) and not isinstance(objective, CISPO):
            assert value[tokens.advantages == 0].eq(0).all(), objective  # a clipped token has the value of the bound
        else:
            assert value[~clipped.kept | (tokens.advantages == 0)].eq(0).all(), objective


def one_response(
    logprobs: list[float], old: list[float], rollout: list[float], advantage: float
) -> tuple[Tensor, Tokens]:
    columns = list(zip(logprobs, rollout, old, strict=True))
    return packed([(columns, advantage, len(columns))], torch.float32)


@pytest.mark.parametrize(("trust", "advantage"), [("none", 1.0), ("clip", -1.0)])
def test_a_rejected_token_is_nothing_however_large_its_other_factor(trust: Trust, advantage: float) -> None:
    """IcePop: π_old/μ_old = e^−100 is outside the band, π_θ/π_old = e^100 overflows."""
    logprobs, tokens = one_response([-1.0, -1.0], [-1.0, -101.0], [-1.0, -1.0], advantage)
    objective = Composed(ratio="mismatch", outside="mask", weight_floor=0.5, weight_cap=5.0, trust=trust)
    value, gradient = value_and_gradient(objective, logprobs, tokens, responses=1)
    assert value.tolist() == [-advantage, 0.0]
    assert gradient.tolist() == [advantage, 0.0]


def test_factors_that_make_up_for_each_other_neither_overflow_nor_vanish() -> None:
    # π_old/μ_old = e^−200 and e^200, π_θ/π_old the inverse: the weight is 1
    logprobs, tokens = one_response([-1.0, -201.0], [-201.0, -1.0], [-1.0, -201.0], 1.0)
    objective = Composed(ratio="mismatch", weight_cap=None, trust="none")
    _, gradient = value_and_gradient(objective, logprobs, tokens, responses=1)
    assert gradient.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("objective", [OPSM(), Composed(trust="sequence_mask", threshold=0.1)], ids=repr)
def test_opsm_measures_from_what_sampled(objective: Objective) -> None:
    """θ = θ_old; the engine gave each token 0.5 nats more. Its mean of log μ/π is 0.5 > δ = 0.1: masked if Â < 0."""
    here, engine = [-1.0, -2.0, -1.5], [-0.5, -1.5, -1.0]
    logprobs, tokens = one_response(here, here, engine, -1.0)
    value, gradient = value_and_gradient(objective, logprobs, tokens, responses=1)
    assert value.tolist() == gradient.tolist() == [0.0] * 3
    assert objective(logprobs, tokens, responses=1, groups=1).clipped.low.all()
    _, kept = value_and_gradient(objective, logprobs, replace(tokens, advantages=-tokens.advantages), responses=1)
    assert (kept > 0).all()
    _, equal = value_and_gradient(objective, logprobs, replace(tokens, rollout_logprobs=logprobs), responses=1)
    assert (equal < 0).all()
    _, near = value_and_gradient(objective, logprobs, replace(tokens, rollout_logprobs=logprobs + 0.09), responses=1)
    assert (near < 0).all()


def test_opsm_from_the_old_policy_does_not_see_the_engine() -> None:
    logprobs, tokens = one_response([-1.0], [-1.0], [-0.5], -1.0)
    objective = Composed(trust="old_sequence_mask", threshold=0.1)
    assert objective(logprobs, tokens, responses=1, groups=1).clipped.kept.all()


@pytest.mark.parametrize("objective", [OPSM(), Composed(trust="clip+sequence_mask")], ids=repr)
def test_opsm_stands_beside_a_clip(objective: Objective) -> None:
    # r = 2 with Â > 0 is clipped, though no response with Â > 0 is masked
    logprobs, tokens = one_response([-1.0, -1.0], [-1.0, -1.0 - math.log(2.0)], [-1.0, -1.0], 1.0)
    assert objective(logprobs, tokens, responses=1, groups=1).clipped.high.tolist() == [False, True]


def test_an_unknown_trust_region_is_named() -> None:
    objective = Composed()
    object.__setattr__(objective, "trust", "clipp")  # what the types refuse
    with pytest.raises(ValueError, match="trust = 'clipp' is not one of none, clip, "):
        value_and_gradient(objective, THETA, TOKENS)


def test_the_mean_over_the_tokens_of_a_mini_batch() -> None:
    """verl's token mean: 8 tokens in the mini-batch, two groups; the mean over groups divides by 2 · 5 here."""
    leaf = THETA.clone().requires_grad_()
    DAPO(token_mean="batch")(leaf, TOKENS, responses=3, groups=2, batch_tokens=8).surrogate.sum().backward()
    torch.testing.assert_close(leaf.grad, torch.tensor([1.25 / 8, -1 / 8, 0.5 / 8, 0, 0]))
    composed = Composed(ratio="staleness", weight_cap=None, mean="batch_tokens")
    terms = composed(THETA, TOKENS, responses=3, groups=2, batch_tokens=8)
    torch.testing.assert_close(terms.surrogate, leaf.grad * THETA)
    with pytest.raises(ValueError, match='mean = "batch_tokens" needs batch_tokens'):
        composed(THETA, TOKENS, responses=3, groups=2)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_an_empty_micro_batch_is_an_empty_sum(objective: Objective) -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    value, gradient = value_and_gradient(objective, THETA[nothing], take(TOKENS, nothing))
    assert value.sum() == 0.0
    assert gradient.numel() == 0


@pytest.mark.parametrize("name", ["logprobs", "old_logprobs", "rollout_logprobs", "advantages"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_broken_number_is_named(name: str, value: float) -> None:
    refuse_broken(THETA, TOKENS)
    column = (THETA if name == "logprobs" else getattr(TOKENS, name)).clone()
    column[3] = value
    logprobs, tokens = (column, TOKENS) if name == "logprobs" else (THETA, replace(TOKENS, **{name: column}))
    with pytest.raises(ValueError, match=f"^{name} of token 1 of response 1 is {value}; drop"):
        refuse_broken(logprobs, tokens)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_denominators_count_what_they_say(objective) -> None:
    once, _ = value_and_gradient(objective, THETA, TOKENS, responses=2, groups=1)
    more_responses, _ = value_and_gradient(objective, THETA, TOKENS, responses=6, groups=1)
    more_groups, _ = value_and_gradient(objective, THETA, TOKENS, responses=2, groups=3)
    by_groups = objective.mean == "group_tokens"
    assert by_groups == isinstance(objective, CISPO | DAPO)
    torch.testing.assert_close(more_responses, once if by_groups else once / 3)
    torch.testing.assert_close(more_groups, once / 3 if by_groups else once)


logs = st.floats(-8.0, 0.0, width=32)
token = st.tuples(logs, logs, logs)
one = st.tuples(st.lists(token, max_size=5), st.sampled_from([-1.0, -0.25, 0.0, 0.5]), st.integers(9, 30))


def packed(responses: list, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tokens]:
    """log π_θ and the facts of some responses, one after the other."""
    columns = torch.tensor([t for tokens, _, _ in responses for t in tokens], dtype=dtype).reshape(-1, 3).unbind(dim=1)
    counts = torch.tensor([len(tokens) for tokens, _, _ in responses], dtype=torch.long)

    def each(values: list) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(counts)

    return columns[0], Tokens(
        rollout_logprobs=columns[1],
        old_logprobs=columns[2],
        advantages=each([a for _, a, _ in responses]),
        response_tokens=counts.to(dtype).repeat_interleave(counts),
        group_tokens=each([g for _, _, g in responses]),
        response=torch.arange(len(responses)).repeat_interleave(counts),
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(data=st.lists(one, min_size=1, max_size=6), cuts=st.sets(st.integers(1, 5)), mix=st.randoms())
def test_any_split_of_the_responses_in_any_order_is_the_same_objective(data: list, cuts: set[int], mix) -> None:
    """Empty responses included."""
    order = mix.sample(range(len(data)), len(data))
    edges = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    parts = [[data[i] for i in order[a:b]] for a, b in itertools.pairwise(edges)]
    logprobs, tokens = packed(data)
    starts = torch.tensor([len(t) for t, _, _ in data]).cumsum(0) - torch.tensor([len(t) for t, _, _ in data])
    moved = torch.cat([starts[i] + torch.arange(len(data[i][0])) for i in order])
    for objective in ALL:
        value, gradient = value_and_gradient(objective, logprobs, tokens)
        split = [value_and_gradient(objective, *packed(part)) for part in parts]
        torch.testing.assert_close(torch.cat([v for v, _ in split]), value[moved])
        torch.testing.assert_close(torch.cat([g for _, g in split]), gradient[moved])


@settings(deadline=None, max_examples=40)
@given(data=st.lists(one, min_size=1, max_size=6))
def test_single_precision_is_double_precision_but_for_rounding(data: list) -> None:
    """Weights up to e^40 differ by about 1e-5 of themselves; where rounding may cross a threshold, nothing is said."""
    wide = {"clip_low": 1e30, "clip_high": 1e30}
    unclipped = [
        Reinforce(),
        MiniRL(clip=False),
        MinPRO(clip=False),
        PrefixIS(weight_cap=5.0),
        *(kind(**wide) for kind in (GRPO, DrGRPO, DAPO, GSPO)),
        CISPO(),
        DPPOTV(threshold=1.0),
        DPPOKL(threshold=1e30),
        VESPO(),
        SAPO(),
        Composed(level="geometric", trust="none"),
    ]
    for objective in unclipped:
        _, exact = value_and_gradient(objective, *packed(data))
        _, single = value_and_gradient(objective, *packed(data, torch.float32))
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_no_objective_waits_for_the_device(objective: Objective) -> None:
    """Tensors of the meta device have shapes and no numbers: asking for one, or for a truth, would raise."""
    tokens = Tokens(**{name: getattr(TOKENS, name).to("meta") for name in Tokens.__slots__})
    terms = objective(THETA.to("meta"), tokens, responses=2, groups=1)
    assert terms.surrogate.shape == THETA.shape


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_twice_the_advantage_is_twice_the_objective(objective: Objective) -> None:
    doubled = replace(TOKENS, advantages=2.0 * TOKENS.advantages)
    for found, once in zip(
        value_and_gradient(objective, THETA, doubled), value_and_gradient(objective, THETA, TOKENS), strict=True
    ):
        torch.testing.assert_close(found, 2.0 * once)
