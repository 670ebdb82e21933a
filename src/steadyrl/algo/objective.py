"""Token-level objectives, to be maximised. Each says one thing: the weight of every token's ∇log π_θ.

An objective is a frozen dataclass whose method `weigh` returns, for each response token, the weight w_t in

    ∇J = Σ_t M_t · w_t · Â · ∇log π_θ(y_t) / denominator

and the mask M_t. `Objective` does the rest, once for all: it stops the gradient through the weight, masks, and divides
by a denominator that is counted over the whole mini-batch. So the sum of the terms over all micro-batches, however the
mini-batch is split, is the objective; `responses`, `groups` and `batch_tokens` count the mini-batch, not the
micro-batch. A token that is masked, has no advantage or has the weight 0 adds exactly 0 to value and gradient, whatever
its other factors are; a NaN of π_θ always shows.

Notation: r_t = π_θ(y_t)/π_old(y_t), w_t = π_θ(y_t)/μ_old(y_t); E is the mean over the responses of the mini-batch.
"""

from dataclasses import dataclass, field
from functools import reduce
from math import inf, log
from typing import Any, ClassVar, Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steadyrl.algo.ratio import (
    BEYOND,
    Level,
    at_level,
    importance_weight,
    masked_weight,
    mismatch,
    product,
    staleness,
    times,
)
from steadyrl.algo.trust import (
    Clipped,
    binary_kl,
    binary_tv,
    decoupled_clip,
    divergence_mask,
    off_policy_sequence_mask,
    second_moment_mask,
)
from steadyrl.types import Tokens

Mean = Literal["responses", "own_tokens", "group_tokens", "batch_tokens"]
"""What the sum over tokens is divided by.

`responses`: the responses; `own_tokens`: responses · |y|; `group_tokens`: groups · Σ_i |y_i| of the token's group;
`batch_tokens`: Σ |y| of the mini-batch.
"""
Trust = Literal[
    "none",
    "clip",
    "rollout_clip",
    "tv",
    "kl",
    "sequence_mask",
    "old_sequence_mask",
    "clip+sequence_mask",
    "clip+old_sequence_mask",
    "rollout_clip+sequence_mask",
    "second_moment",
]
"""Where M_t = 0; `a+b` masks what one of the two masks."""


class Terms(NamedTuple):
    """An objective, token by token."""

    surrogate: Float[Tensor, "tokens"]
    """Summands; gradient flows to log π_θ."""
    clipped: Clipped
    """Tokens without gradient, by side."""
    truncated: Bool[Tensor, "tokens"]
    """Tokens whose importance weight was cut from above, or out."""


class Weighed(NamedTuple):
    """What an objective decides about each token."""

    weight: Float[Tensor, "tokens"]
    """w_t, before the mask."""
    clipped: Clipped | None = None
    """M_t = 0; None: nowhere."""
    truncated: Bool[Tensor, "tokens"] | None = None
    """The weight was cut from above, or out; None: nowhere."""
    value: Float[Tensor, "tokens"] | None = None
    """Value of the summand before the division; None: w_t Â log π_θ(y_t), or 0 where it is masked."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective made of a weight per token; the base of all below."""

    normalised: bool = field(default=False, init=False)
    """Whether its advantages are divided by the standard deviation of their group."""
    mean: Mean = field(default="responses", init=False)
    """What the sum over tokens is divided by."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The decision about each token, given log π_θ(y_t); runs without gradient."""
        raise NotImplementedError

    def __call__(
        self,
        logprobs: Float[Tensor, "tokens"],
        tokens: Tokens,
        *,
        responses: int,
        groups: int,
        batch_tokens: int | None = None,
    ) -> Terms:
        """Terms of the micro-batch: w_t Â log π_θ(y_t) over the denominator, with gradient to log π_θ only.

        Args:
            logprobs: log π_θ(y_t).
            tokens: what else there is to know of each token.
            responses: responses in the mini-batch.
            groups: prompts in the mini-batch.
            batch_tokens: response tokens in the mini-batch; read where `mean` is `batch_tokens` only.

        Raises:
            ValueError: `mean` is `batch_tokens`, and they were not given.
        """
        if self.mean == "batch_tokens" and batch_tokens is None:
            raise ValueError(
                'mean = "batch_tokens" needs batch_tokens, the response tokens of the mini-batch; found None'
            )
        with torch.no_grad():  # the stop-gradient of every objective
            weight, clipped, truncated, value = self.weigh(logprobs, tokens)
            counts = tokens.advantages != 0
            nowhere = torch.zeros_like(counts)
            clipped = Clipped(nowhere, nowhere) if clipped is None else clipped
            # where, not a product: 0 · inf would be NaN
            coefficient = (weight * tokens.advantages).where(clipped.kept & counts, 0.0)
            value = _times(coefficient, logprobs) if value is None else value.where(counts, 0.0)
        terms = cast(Tensor, _Sloped.apply(logprobs, value, coefficient))
        divisor = {
            "responses": responses,
            "own_tokens": responses * tokens.response_tokens,
            "group_tokens": groups * tokens.group_tokens,
            "batch_tokens": batch_tokens,
        }[self.mean]
        return Terms(terms / divisor, clipped, nowhere if truncated is None else truncated)


def _times(one: Float[Tensor, "tokens"], other: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """A product in which 0 · inf is 0; a NaN stays."""
    zero = ((one == 0) & ~other.isnan()) | ((other == 0) & ~one.isnan())
    return (one * other).masked_fill(zero, 0.0)


class _Sloped(torch.autograd.Function):
    """A value with a slope of its own, so that neither is computed from the other: inf − inf would be NaN."""

    @staticmethod
    def forward(ctx: Any, logprobs: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor, None, None]:
        """The slope, to the log-probabilities alone."""
        (slope,) = ctx.saved_tensors
        return slope * above[0], None, None


@dataclass(frozen=True, kw_only=True)
class Reinforce(Objective):
    """REINFORCE with a baseline (Williams, 1992): the policy gradient as if μ_old = π_old = π_θ.

    J = E[ Σ_t Â · log π_θ(y_t) ]
    """

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight 1, no mask."""
        return Weighed(torch.ones_like(logprobs))


@dataclass(frozen=True, kw_only=True)
class MiniRL(Objective):
    """MiniRL, eq. 7 of arXiv 2512.01374, and its ablations.

    J = E[ Σ_t M_t · sg[min(π_θ(y_t)/μ_old(y_t), cap)] · Â · log π_θ(y_t) ]

    There is no length normalisation.
    """

    clip_low: float = 0.2
    """ε_low."""
    clip_high: float = 0.27
    """ε_high."""
    clip: bool = True
    """Off: M_t = 1."""
    importance_sampling: bool = True
    """Off: π_old takes the place of μ_old in the weight, which drops the train–inference correction."""
    weight_cap: float | None = 5.0
    """Truncation of the importance weight."""
    length_norm: bool = False
    """1/|y| before the sum over tokens."""
    _level: ClassVar[Level] = "token"

    def __post_init__(self) -> None:
        """The ablation of the length changes what is divided by."""
        object.__setattr__(self, "mean", "own_tokens" if self.length_norm else "responses")

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight and mask of eq. 7."""
        moved = staleness(logprobs, tokens.old_logprobs)
        log_weight = product(logprobs, tokens.rollout_logprobs) if self.importance_sampling else moved
        clipped = None
        if self.clip:
            clipped = decoupled_clip(moved, tokens.advantages, low=self.clip_low, high=self.clip_high)
        return _capped(at_level(log_weight, tokens.response, level=self._level), self.weight_cap, clipped)


@dataclass(frozen=True, kw_only=True)
class MinPRO(MiniRL):
    """MinPRO, arXiv 2601.22718, in the place of the token's weight in eq. 7: sg[min(w_t · min_{s<t} w_s, cap)]."""

    _level: ClassVar[Level] = "lowest_prefix"


@dataclass(frozen=True, kw_only=True)
class PrefixIS(Objective):
    """The weight that puts the prefix of every token where π_θ would have put it, at any distance of π_θ and μ_old.

    J = E[ Σ_t sg[Π_{s≤t} w_s] · Â · log π_θ(y_t) ]

    Without a cap its mean is the gradient of J_seq, eq. 1 of arXiv 2512.01374, if the Â of a token is the value that
    π_θ expects after it. With one Â for the whole response, the tokens behind t are still those of μ_old: then
    `Composed(level="sequence", weight_cap=None, trust="none")`, eq. 2, is the one without bias.
    """

    weight_cap: float | None = None
    """Truncation of the prefix product."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The prefix product, no mask."""
        log_weight = at_level(product(logprobs, tokens.rollout_logprobs), tokens.response, level="prefix")
        return _capped(log_weight, self.weight_cap)


@dataclass(frozen=True, kw_only=True)
class GRPO(Objective):
    """GRPO, Appendix A of arXiv 2512.01374 (after arXiv 2402.03300), without a KL penalty.

    J = E[ (1/|y|) Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) ]

    Groups are of equal size, so the mean over them is the mean over responses.
    """

    normalised: bool = field(default=True, init=False)
    mean: Mean = field(default="own_tokens", init=False)
    clip_low: float = 0.2
    """ε_low."""
    clip_high: float = 0.27
    """ε_high."""
    _level: ClassVar[Level] = "token"

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight r_t, masked where the clip is the smaller; the value is the minimum itself."""
        log_ratio = at_level(staleness(logprobs, tokens.old_logprobs), tokens.response, level=self._level)
        clipped = decoupled_clip(log_ratio, tokens.advantages, low=self.clip_low, high=self.clip_high)
        ratio = log_ratio.exp()
        bounded = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return Weighed(ratio, clipped, value=torch.minimum(ratio * tokens.advantages, bounded * tokens.advantages))


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPO):
    """Dr. GRPO, arXiv 2503.20783: GRPO without 1/|y| and without the standard deviation.

    J = E[ Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) ]
    """

    normalised: bool = field(default=False, init=False)
    mean: Mean = field(default="responses", init=False)
    clip_high: float = 0.2
    """ε_high."""


@dataclass(frozen=True, kw_only=True)
class DAPO(GRPO):
    """DAPO, arXiv 2503.14476: GRPO with a wider upper clip and the mean over the tokens of a group.

    J = mean over groups of (1/Σ_i|y_i|) Σ_i Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â)

    With `token_mean="batch"` one mean over the tokens of all groups, as verl and TRL take it. Its dynamic sampling is
    `advantage.informative`, its overlong filtering `advantage.without_truncated`.
    """

    clip_high: float = 0.28
    """ε_high."""
    token_mean: Literal["group", "batch"] = "group"
    """The mean over tokens is one of each group, and then over groups; or one of the whole mini-batch."""

    def __post_init__(self) -> None:
        """The tokens of the mean are what is divided by."""
        object.__setattr__(self, "mean", "batch_tokens" if self.token_mean == "batch" else "group_tokens")


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPO):
    """GSPO, arXiv 2507.18071: the clip of PPO on one ratio per response.

    J = E[ min(s Â, clip(s, 1−ε_low, 1+ε_high) Â) ],  s = (Π_t r_t)^{1/|y|}

    ∇J = E[ M · s · Â · (1/|y|) Σ_t ∇log π_θ(y_t) ]: each token has the weight s, and the response its mean over tokens.
    """

    clip_low: float = 3e-4
    """ε_low."""
    clip_high: float = 4e-4
    """ε_high."""
    _level: ClassVar[Level] = "geometric"


@dataclass(frozen=True, kw_only=True)
class OPSM(GRPO):
    """Off-policy sequence masking of DeepSeek-V3.2, eq. 8 and 9 of arXiv 2512.02556, without its KL penalty.

    J = E[ (1/|y|) Σ_t min(r_t Â, clip(r_t, 1−ε_low, 1+ε_high) Â) · M ]

    M = 0 iff Â < 0 and (1/|y|) Σ_t log μ_old(y_t)/π_θ(y_t) > δ. The mask stands beside the clip. It measures from the
    probabilities that the inference engine returned, so it sees both factors of eq. 5 of arXiv 2512.01374. Â is not
    divided by the standard deviation. The source gives neither δ nor ε; the values here are ours.
    """

    normalised: bool = field(default=False, init=False)
    threshold: float = 0.1
    """δ, in nats per token."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """As GRPO, less the responses that are masked whole."""
        weight, clipped, _, value = super().weigh(logprobs, tokens)
        far = off_policy_sequence_mask(
            product(logprobs, tokens.rollout_logprobs), tokens.advantages, tokens.response, threshold=self.threshold
        )
        assert clipped is not None
        assert value is not None
        return Weighed(weight, _either(clipped, far), value=value.where(far.kept, 0.0))


@dataclass(frozen=True, kw_only=True)
class CISPO(GRPO):
    """CISPO, Appendix A of arXiv 2512.01374 (after arXiv 2506.13585).

    J = mean over groups of (1/Σ_i|y_i|) Σ_i Σ_t sg[clip(r_t, 1−ε_low, 1+ε_high)] Â log π_θ(y_t)

    The weight is clipped, not the token: every token keeps a gradient.
    """

    mean: Mean = field(default="group_tokens", init=False)

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight r_t between its bounds, no mask."""
        ratio = staleness(logprobs, tokens.old_logprobs).exp()
        weight = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return Weighed(weight, truncated=ratio > weight)


@dataclass(frozen=True, kw_only=True)
class DPPOTV(Objective):
    """DPPO with binary total variation, arXiv 2602.04879: the trust region is a divergence from μ_old.

    J = E[ Σ_t M_t · sg[π_θ(y_t)/μ_old(y_t)] · Â · log π_θ(y_t) ]

    M_t = 0 iff |μ_old(y_t) − π_θ(y_t)| > δ and the update moves outward (Â>0, w_t>1 or Â<0, w_t<1).
    """

    threshold: float = 0.15
    """δ."""
    _divergence: ClassVar = staticmethod(binary_tv)

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight w_t, masked where the divergence is too large."""
        log_weight = product(logprobs, tokens.rollout_logprobs)
        divergence = self._divergence(logprobs, tokens.rollout_logprobs)
        clipped = divergence_mask(divergence, log_weight, tokens.advantages, threshold=self.threshold)
        return Weighed(log_weight.exp(), clipped)


@dataclass(frozen=True, kw_only=True)
class DPPOKL(DPPOTV):
    """DPPO with binary KL, arXiv 2602.04879: as `DPPOTV`, with D_KL of "this token or another" for the divergence."""

    threshold: float = 0.05
    """δ, in nats."""
    _divergence: ClassVar = staticmethod(binary_kl)


@dataclass(frozen=True, kw_only=True)
class VESPO(Objective):
    """VESPO, arXiv 2602.10693: a soft weight of the whole response.

    J = E[ Σ_t sg[φ(W)] · Â · log π_θ(y_t) ],  φ(W) = W^{c1} e^{c2 (1−W)},  W = Π_t w_t, not normalised by the length
    """

    rise_positive: float = 2.0
    """c1 for Â > 0."""
    fall_positive: float = 3.0
    """c2 for Â > 0."""
    rise_negative: float = 3.0
    """c1 for Â < 0."""
    fall_negative: float = 2.0
    """c2 for Â < 0."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """Weight φ(W), no mask."""
        log_weight = at_level(product(logprobs, tokens.rollout_logprobs), tokens.response, level="sequence")
        log_weight = log_weight.clamp(max=BEYOND)  # else inf − inf; φ is 0 there
        rise = _by_sign(tokens.advantages, self.rise_positive, self.rise_negative)
        fall = _by_sign(tokens.advantages, self.fall_positive, self.fall_negative)
        return Weighed((rise * log_weight - fall * log_weight.expm1()).exp())


@dataclass(frozen=True, kw_only=True)
class SAPO(Objective):
    """SAPO, arXiv 2511.20347: a soft gate in the place of the clip.

    J = E[ (1/|y|) Σ_t (4/τ) σ(τ (r_t − 1)) Â ],  so the weight is 4 σ(1−σ) r_t
    """

    normalised: bool = field(default=True, init=False)
    mean: Mean = field(default="own_tokens", init=False)
    temperature_positive: float = 1.0
    """τ for Â > 0."""
    temperature_negative: float = 1.05
    """τ for Â < 0."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The slope of the gate, and the gate as the value; no mask."""
        log_ratio = staleness(logprobs, tokens.old_logprobs).clamp(max=BEYOND)  # else inf − inf; the slope is 0
        tau = _by_sign(tokens.advantages, self.temperature_positive, self.temperature_negative)
        beyond = tau * log_ratio.expm1()
        slope = (logsigmoid(beyond) + logsigmoid(-beyond) + log_ratio).exp()  # as logs: 0 where r_t overflows
        return Weighed(4.0 * slope, value=4.0 / tau * beyond.sigmoid() * tokens.advantages)


@dataclass(frozen=True, kw_only=True)
class Composed(Objective):
    """An objective of one's own, from the parts; as it stands, MiniRL.

    J = Σ M_t · sg[bound(ρ_t) · rest_t] · Â · log π_θ(y_t) / mean

    ρ_t is `ratio` at `level`. Where `ratio` is the mismatch alone, rest_t = r_t supplies the other factor of eq. 5,
    as TIS, MIS and IcePop do; else rest_t = 1.
    """

    ratio: Literal["product", "mismatch", "staleness", "none"] = "product"
    """π_θ/μ_old, π_old/μ_old, π_θ/π_old (no train–inference correction), or 1 (no importance sampling)."""
    level: Level = "token"
    """Over which tokens of the response ρ_t is taken."""
    outside: Literal["truncate", "mask"] = "truncate"
    """A weight above the cap becomes the cap; or one outside [floor, cap] becomes 0."""
    weight_floor: float = 0.0
    """Lower end of the band; for `mask` only."""
    weight_cap: float | None = 5.0
    """Upper end."""
    trust: Trust = "clip"
    """M_t: 1; the clip of π_θ/π_old; that of π_θ/μ_old; DPPO's masks; OPSM, measured from μ_old or from π_old, alone or
    beside a clip; M2PO."""
    clip_low: float = 0.2
    """ε_low of the clips."""
    clip_high: float = 0.27
    """ε_high of the clips."""
    threshold: float = 0.15
    """δ of `tv` and `kl` (sources: 0.15, 0.05) and of the sequence masks; τ of `second_moment` (source: 0.04)."""
    mean: Mean = "responses"
    """What the sum over tokens is divided by."""
    normalised: bool = False
    """Divide advantages by the standard deviation of their group."""

    def weigh(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Weighed:
        """The parts, put together."""
        moved = staleness(logprobs, tokens.old_logprobs)
        log_ratio = {
            "product": product(logprobs, tokens.rollout_logprobs),
            "mismatch": mismatch(tokens.old_logprobs, tokens.rollout_logprobs),
            "staleness": moved,
            "none": torch.zeros_like(moved),
        }[self.ratio]
        log_weight, clipped = at_level(log_ratio, tokens.response, level=self.level), self._trust(logprobs, tokens)
        if self.outside == "truncate":
            weighed = _capped(log_weight, self.weight_cap, clipped)
            bounded = log_weight if self.weight_cap is None else log_weight.clamp(max=log(self.weight_cap))
        else:
            high = inf if self.weight_cap is None else self.weight_cap
            weight = masked_weight(log_weight, low=self.weight_floor, high=high)
            weighed = Weighed(weight, clipped, weight != log_weight.exp())
            bounded = log_weight.masked_fill((weight != log_weight.exp()) & ~log_weight.isnan(), -inf)
        # in logs: neither 0 · inf, nor the overflow of a factor that the other makes up for
        return weighed._replace(weight=times(bounded, moved).exp()) if self.ratio == "mismatch" else weighed

    def _trust(self, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Clipped | None:
        if self.trust == "none":
            return None
        one, *more = (self._mask(name, logprobs, tokens) for name in self.trust.split("+"))
        return reduce(_either, more, one)

    def _mask(self, name: str, logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> Clipped:
        advantages, rollout, response = tokens.advantages, tokens.rollout_logprobs, tokens.response
        from_old, from_rollout = staleness(logprobs, tokens.old_logprobs), product(logprobs, rollout)
        match name:
            case "clip" | "rollout_clip":
                moved = from_old if name == "clip" else from_rollout
                return decoupled_clip(moved, advantages, low=self.clip_low, high=self.clip_high)
            case "tv" | "kl":
                divergence = (binary_tv if name == "tv" else binary_kl)(logprobs, rollout)
                return divergence_mask(divergence, from_rollout, advantages, threshold=self.threshold)
            case "sequence_mask" | "old_sequence_mask":
                moved = from_rollout if name == "sequence_mask" else from_old
                return off_policy_sequence_mask(moved, advantages, response, threshold=self.threshold)
            case "second_moment":
                return second_moment_mask(from_rollout, advantages, response, threshold=self.threshold)
        raise ValueError(f"trust = {self.trust!r} is not one of {', '.join(get_args(Trust))}")


def _either(one: Clipped, other: Clipped) -> Clipped:
    """What one of two masks, or both, mask."""
    return Clipped(low=one.low | other.low, high=one.high | other.high)


def _capped(log_weight: Float[Tensor, "tokens"], cap: float | None, clipped: Clipped | None = None) -> Weighed:
    """The weight truncated at the cap, and where that cut it."""
    weight = importance_weight(log_weight, cap=cap)
    return Weighed(weight, clipped, log_weight.exp() > weight)


def _by_sign(advantages: Float[Tensor, "tokens"], positive: float, negative: float) -> Float[Tensor, "tokens"]:
    return torch.full_like(advantages, negative).masked_fill(advantages > 0, positive)


def refuse_broken(logprobs: Float[Tensor, "tokens"], tokens: Tokens) -> None:
    """Look for numbers that no objective can use; it waits for the device, so call it where a batch comes in.

    Raises:
        ValueError: a log-probability or an advantage is NaN or infinite; the message names the response and the token.
    """
    columns = {"logprobs": logprobs, "old_logprobs": tokens.old_logprobs, "rollout_logprobs": tokens.rollout_logprobs}
    for name, column in {**columns, "advantages": tokens.advantages}.items():
        broken = (~column.isfinite()).nonzero()
        if len(broken):
            token = int(broken[0])
            response = tokens.response[token]
            position = int((tokens.response[:token] == response).sum())
            raise ValueError(
                f"{name} of token {position} of response {int(response)} is {column[token].item()}; "
                "drop the response, or find what computed it"
            )
