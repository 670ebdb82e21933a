"""What is measured each step: both factors of eq. 5 (arXiv 2512.01374), before anything is truncated.

The estimators follow Schulman's notation, for x ~ q and ρ = p(x)/q(x): k1 = −log ρ and k3 = ρ − 1 − log ρ both have
the mean D_KL[q‖p]; k3 is never negative and varies less when p is near q. χ² = E_q[(ρ − 1)²].
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steadyrl.algo.ratio import begins, discrepancy, first_tokens, product, staleness, sum_over_response
from steadyrl.types import Routes

POSITIONS = (0, 16, 64, 256, 1024, 4096, 16384)
"""Where the buckets of positions within a response begin."""
LAGS = (0, 1, 2, 4, 8)
"""Where the buckets of the policy's age begin, in versions."""


def k1(log_ratio: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """E_q[−log ρ], the plain estimator of D_KL[q‖p]; `log_ratio` is log p − log q of tokens sampled from q."""
    return -log_ratio.mean()


def k3(log_ratio: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """E_q[ρ − 1 − log ρ], the non-negative estimator of D_KL[q‖p]."""
    return (log_ratio.expm1() - log_ratio).mean()


def chi2(log_ratio: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """E_q[(ρ − 1)²], the χ² divergence of p from q; it hears the upper tail that k1 and k3 hardly do."""
    return log_ratio.expm1().square().mean()


def effective_sample_size(log_weight: Float[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """(Σw)² / (n Σw²), in (0, 1]: the share of tokens that the weighted average rests on (Kish)."""
    shifted = (log_weight - log_weight.max()).exp()  # the ratio does not change, and nothing overflows
    return shifted.sum().square() / (shifted.numel() * shifted.square().sum())


def margin(values: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> Float[Tensor, ""]:
    """Half the 95% interval of the mean over tokens; tokens of one response are not independent, responses are.

    1.96 · sqrt( m/(m−1) · Σ_i (Σ_t (x_t − mean))² ) / n over m responses of n tokens in all; infinite for m = 1.
    """
    one = begins(response)
    sums = sum_over_response(values - values.mean(), response)[one]
    responses = one.sum()
    return 1.96 * (responses / (responses - 1) * sums.square().sum()).sqrt() / len(values)


def describe(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> dict[str, float]:
    """A factor in numbers, untruncated; one wait for the device.

    `k1`, `k3` (each with `_margin`, half its 95% interval) and `chi2`; `mean`, `max` and `ess` of the ratio; `abs_mean`
    and `abs_max` of its log; `p01`, `p50` and `p99`, quantiles of the ratio; `tail_2` and `tail_5`, the shares of
    ratios outside [1/2, 2] and [1/5, 5].

    Args:
        log_ratio: log of the ratio, per token.
        response: the response that each token belongs to.
    """
    size, last = log_ratio.abs(), len(log_ratio) - 1
    quantiles = {f"p{100 * q:02.0f}": log_ratio.kthvalue(1 + round(q * last)).values.exp() for q in (0.01, 0.5, 0.99)}
    numbers = {
        "k1": k1(log_ratio),
        "k1_margin": margin(log_ratio, response),
        "k3": k3(log_ratio),
        "k3_margin": margin(log_ratio.expm1() - log_ratio, response),
        "chi2": chi2(log_ratio),
        "mean": log_ratio.exp().mean(),
        "max": log_ratio.max().exp(),
        "ess": effective_sample_size(log_ratio),
        "abs_mean": size.mean(),
        "abs_max": size.max(),
        **quantiles,
        "tail_2": (size > torch.tensor(2.0).log()).double().mean(),
        "tail_5": (size > torch.tensor(5.0).log()).double().mean(),
    }
    return dict(zip(numbers, torch.stack([n.double() for n in numbers.values()]).tolist(), strict=True))


_OF_UPDATES = ("mean", "max", "ess", "k1", "k3", "k3_margin", "chi2", "p01", "p50", "p99", "tail_2", "tail_5")


def mismatch(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> dict[str, float]:
    """The discrepancy between the two engines on the same weights, from log π_old/μ_old."""
    return {f"mismatch/{name}": value for name, value in describe(log_ratio, response).items()}


def drift(log_ratio: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> dict[str, float]:
    """The staleness of the policy, from log π_θ/π_old."""
    return {f"staleness/{name}": value for name, value in describe(log_ratio, response).items() if name in _OF_UPDATES}


def weights(log_weight: Float[Tensor, "tokens"], response: Int[Tensor, "tokens"]) -> dict[str, float]:
    """The importance weight, before any truncation, from log π_θ/μ_old: the sum of the two logs above."""
    return {f"weight/{name}": value for name, value in describe(log_weight, response).items() if name in _OF_UPDATES}


class Factors(NamedTuple):
    """Logs of π_θ/μ_old and, where a θ_old pass was made, of the two factors that it is the product of."""

    product: Float[Tensor, "tokens"]
    """log π_θ/μ_old."""
    discrepancy: Float[Tensor, "tokens"] | None
    """log π_old/μ_old; None: not known."""
    staleness: Float[Tensor, "tokens"] | None
    """log π_θ/π_old; None: not known."""

    @property
    def note(self) -> str | None:
        """Why a factor is missing."""
        if self.discrepancy is not None:
            return None
        return "no θ_old pass was made: discrepancy and staleness cannot be separated, only their product is known"


def factors(
    logprobs: Float[Tensor, "tokens"],
    rollout_logprobs: Float[Tensor, "tokens"],
    old_logprobs: Float[Tensor, "tokens"] | None,
) -> Factors:
    """π_θ/μ_old and its two factors; without log π_old only their product."""
    both = product(logprobs, rollout_logprobs)
    if old_logprobs is None:
        return Factors(both, None, None)
    return Factors(both, discrepancy(old_logprobs, rollout_logprobs), staleness(logprobs, old_logprobs))


class Split(NamedTuple):
    """A way to sort tokens into buckets."""

    name: str
    """What they are sorted by."""
    buckets: tuple[str, ...]
    """Names of the buckets."""
    bucket: Int[Tensor, "tokens"]
    """Index of each token's bucket."""


def by_position(response: Int[Tensor, "tokens"]) -> Split:
    """By position within the response, counted from 0: `0`, `16`, `64`, … name where a bucket begins."""
    return _by_edge("position", torch.arange(len(response), device=response.device) - first_tokens(response), POSITIONS)


def by_advantage(advantages: Float[Tensor, "tokens"]) -> Split:
    """By the sign of Â."""
    return Split("advantage", ("negative", "zero", "positive"), advantages.sign().long() + 1)


def by_version(lag: Int[Tensor, "tokens"]) -> Split:
    """By the gradient steps between the weights that sampled a token and those that score it now."""
    return _by_edge("version", lag, LAGS)


def by_routes(disagreement: Float[Tensor, "tokens"]) -> Split:
    """By whether both engines chose the same experts in every layer where the token was predicted."""
    return Split("routes", ("agreed", "differed"), (disagreement > 0).long())


def _by_edge(name: str, value: Int[Tensor, "tokens"], edges: tuple[int, ...]) -> Split:
    inner = torch.tensor(edges[1:], device=value.device)
    return Split(name, tuple(map(str, edges)), torch.bucketize(value, inner, right=True))


def table(
    measured: Factors, response: Int[Tensor, "tokens"], splits: Sequence[Split] = ()
) -> list[dict[str, float | int | str]]:
    """The two-factor ledger: `describe` of each known factor, over all tokens and in each bucket that is not empty.

    Each row starts with `factor` (`product`, `discrepancy`, `staleness`), `split` and `bucket` (`all` for the whole)
    and `tokens`. A factor that is not known has no row; `Factors.note` then says why.
    """
    rows: list[dict[str, float | int | str]] = []
    known = {name: value for name, value in measured._asdict().items() if value is not None}
    everything = Split("all", ("all",), torch.zeros_like(response))
    for split in (everything, *splits):
        for index, bucket in enumerate(split.buckets):
            inside = split.bucket == index
            count = int(inside.sum())
            for factor, values in known.items() if count else ():
                head = {"factor": factor, "split": split.name, "bucket": bucket, "tokens": count}
                rows.append(head | describe(values[inside], response[inside]))
    return rows


def routes_differ(mine: Routes, theirs: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether two expert *sets* differ, for each fed position and layer; the order within a set means nothing."""
    return (_ordered(mine) != _ordered(theirs)).any(dim=-1)


def route_disagreement(mine: Routes, theirs: Routes) -> Float[Tensor, "positions"]:
    """Share of layers whose expert sets differ, for each fed position."""
    return routes_differ(mine, theirs).float().mean(dim=-1)


def _ordered(routes: Routes) -> Tensor:
    return routes.to(torch.int32).sort(dim=-1).values
