"""What is measured each step: both factors of eq. 5 (arXiv 2512.01374), before anything is truncated.

The estimators follow Schulman's notation, for x ~ q and ρ = p(x)/q(x): k1 = −log ρ and k3 = ρ − 1 − log ρ. Both have
the mean D_KL[q‖p]. k3 is never negative and varies less when p is near q. χ² = E_q[(ρ − 1)²].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steadyrl.algo.buckets import CHUNK, Split, add_up, ranks
from steadyrl.algo.ratio import first_tokens, mismatch, product, staleness
from steadyrl.types import Routes

POSITIONS = (0, 16, 64, 256, 1024, 4096, 16384)
"""Where the buckets of positions within a response begin."""
LAGS = (0, 1, 2, 4, 8)
"""Where the buckets of the policy's age begin, in gradient steps."""

_SAID = (
    "k1",
    "k3",
    "k3_margin",
    "chi2",
    "mean",
    "max",
    "ess",
    "ess_sequences",
    "p01",
    "p50",
    "p99",
    "tail_2",
    "tail_5",
)
_OF_ENGINES = ("k1_margin", "abs_mean", "abs_max")
_SUMMED = ("tokens", "k1", "k3", "chi2", "mean", "abs_mean", "tail_2", "tail_5", "weight", "square")
Row = dict[str, float | int | str]


def k3(log_ratio: Float[Tensor, "*tokens"]) -> Float[Tensor, "*tokens"]:
    """ρ − 1 − log ρ of each token; under q its mean is D_KL[q‖p]. `log_ratio` is log p − log q."""
    return log_ratio.expm1() - log_ratio


class Factors(NamedTuple):
    """Logs of π_θ/μ_old and, where a θ_old pass was made, of the two factors that it is the product of."""

    product: Float[Tensor, "tokens"]
    """log π_θ/μ_old."""
    mismatch: Float[Tensor, "tokens"] | None
    """log π_old/μ_old; None: not known."""
    staleness: Float[Tensor, "tokens"] | None
    """log π_θ/π_old; None: not known."""

    @property
    def known(self) -> dict[str, Float[Tensor, "tokens"]]:
        """By name, those that are known."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    @property
    def note(self) -> str | None:
        """Why a factor is missing."""
        if self.mismatch is not None:
            return None
        return "no θ_old pass was made: mismatch and staleness cannot be separated, only their product is known"


def factors(
    logprobs: Float[Tensor, "tokens"],
    rollout_logprobs: Float[Tensor, "tokens"],
    old_logprobs: Float[Tensor, "tokens"] | None,
) -> Factors:
    """π_θ/μ_old and its two factors; without log π_old only their product."""
    both = product(logprobs, rollout_logprobs)
    if old_logprobs is None:
        return Factors(both, None, None)
    return Factors(both, mismatch(old_logprobs, rollout_logprobs), staleness(logprobs, old_logprobs))


def by_position(response: Int[Tensor, "tokens"]) -> Split:
    """By position within the response, counted from 0: `0`, `16`, `64`, … name where a bucket begins."""
    return _by_edge("position", torch.arange(len(response), device=response.device) - first_tokens(response), POSITIONS)


def by_advantage(advantages: Float[Tensor, "tokens"]) -> Split:
    """By the sign of Â."""
    return Split("advantage", ("negative", "zero", "positive"), (advantages.sign() + 1).to(torch.uint8))


def by_version(lag: Int[Tensor, "tokens"]) -> Split:
    """By the gradient steps between the weights that sampled a token and those that compute it now."""
    return _by_edge("version", lag, LAGS)


def by_routes(differs: Bool[Tensor, "tokens layers"], routed: Bool[Tensor, "tokens"]) -> Split:
    """By whether both engines chose the same experts in every layer where the token was predicted, if `routed`."""
    bucket = differs.any(dim=1).to(torch.uint8).masked_fill(~routed, 2)
    return Split("routes", ("agreed", "differed", "unrouted"), bucket)


def _by_edge(name: str, value: Int[Tensor, "tokens"], edges: tuple[int, ...]) -> Split:
    inner = torch.tensor(edges[1:], device=value.device)
    bucket = torch.bucketize(value, inner, right=True, out_int32=True).to(torch.uint8)
    return Split(name, tuple(map(str, edges)), bucket)


def table(
    measured: Mapping[str, Float[Tensor, "tokens"]], response: Int[Tensor, "tokens"], splits: Sequence[Split] = ()
) -> list[Row]:
    """The two-factor ledger: `describe` of each factor, over all tokens and in each bucket that is not empty.

    Each row starts with `factor`, `split` and `bucket` (`all` for the whole) and `tokens`. A factor that is not known
    has no row; `Factors.note` then says why.

    Args:
        measured: log ratios by factor, such as `Factors.known`.
        response: the response that each token belongs to, in order.
        splits: ways to sort the tokens.
    """
    every = (Split("all", ("all",), torch.zeros_like(response, dtype=torch.uint8)), *splits)
    numbers = describe(torch.stack(list(measured.values())), response, every)
    names = ("factor", "split", "bucket", *numbers)
    heads = [(factor, split.name, bucket) for split in every for bucket in split.buckets for factor in measured]
    columns = torch.stack(list(numbers.values())).permute(2, 1, 0).flatten(end_dim=1).tolist()  # as the heads
    return [
        dict(zip(names, (*head, *values), strict=True)) | {"tokens": int(values[0])}
        for head, values in zip(heads, columns, strict=True)
        if values[0]
    ]


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """What `metrics.jsonl` says of each factor: the rows of all tokens, by metric."""
    prefixes = {"product": "weight"}  # the other factors have the names of their metrics
    return {
        f"{prefixes.get(str(row['factor']), row['factor'])}/{name}": float(row[name])
        for row in rows
        if row["split"] == "all"
        for name in (*_SAID, *(_OF_ENGINES if row["factor"] == "mismatch" else ()))
    }


def describe(
    log_ratio: Float[Tensor, "factors tokens"], response: Int[Tensor, "tokens"], splits: Sequence[Split]
) -> dict[str, Float[Tensor, "factors buckets"]]:
    """Statistics of the untruncated factors, for every bucket of every split. An empty bucket has undefined values.

    * `tokens`: how many.
    * `k1`, `k3` and `chi2`; `k1_margin` and `k3_margin` are half the 95% intervals.
    * `mean` and `max` of the ratio; `p01`, `p50` and `p99`, its quantiles.
    * `ess`: (Σρ)² / (n Σρ²), the share of tokens that carry a weighted average (Kish).
    * `ess_sequences`: the same for W = Π ρ over the tokens of a response in the bucket (VCPO, arXiv 2602.17616).
    * `abs_mean` and `abs_max` of the log ratio.
    * `tail_2` and `tail_5`: the shares of ratios outside [1/2, 2] and [1/5, 5].

    Args:
        log_ratio: log of the ratio, per factor and token.
        response: the response that each token belongs to, in order.
        splits: ways to sort the tokens; the result has their buckets one after another.
    """
    p01, p50, p99, lowest, highest = ranks(log_ratio, splits, quantiles=(0.01, 0.5, 0.99)).double()
    finite = (part.double().nan_to_num(nan=-torch.inf) for part in log_ratio.split(CHUNK, dim=1))
    largest = torch.stack([part.amax(dim=1) for part in finite]).amax(dim=0)[:, None]
    sums, cells = add_up(lambda here: _terms(log_ratio[:, here], largest), response, splits, kept=3)
    found = dict(zip(_SUMMED, sums, strict=True))
    count, total, squares = (found.pop(name) for name in ("tokens", "weight", "square"))
    means = {name: value / count for name, value in found.items()}
    parts = zip(cells.by_response(), torch.stack([means["k1"], means["k3"]]).split(cells.sizes, dim=-1), strict=True)
    between = [
        (_margin(held, torch.stack(totals), mean), _effective(held, totals[0])) for (held, *totals), mean in parts
    ]
    margins, effective = (torch.cat(values, dim=-1) for values in zip(*between, strict=True))
    return {
        "tokens": count,
        **means,
        "k1_margin": margins[0],
        "k3_margin": margins[1],
        "ess": (total.square() / (count * squares)).clamp(max=1.0),
        "ess_sequences": effective,
        **{"p01": p01.exp(), "p50": p50.exp(), "p99": p99.exp(), "max": highest.exp()},
        "abs_max": torch.maximum(-lowest, highest),
    }


def _terms(
    log_ratio: Float[Tensor, "factors tokens"], largest: Float[Tensor, "factors 1"]
) -> Float[Tensor, "terms factors tokens"]:
    """What is added up over tokens, in the order of `_SUMMED`."""
    wide, size = log_ratio.double(), log_ratio.abs()
    weight = (wide - largest).exp()  # over the largest, so that nothing overflows
    tails = ((size > torch.tensor(outside).log()).double() for outside in (2.0, 5.0))
    ratios = wide.expm1().square(), wide.exp()
    return torch.stack(
        [torch.ones_like(wide), -wide, k3(wide), *ratios, size.double(), *tails, weight, weight.square()]
    )


def _effective(
    held: Float[Tensor, "factors buckets responses"], negative: Float[Tensor, "factors buckets responses"]
) -> Float[Tensor, "factors buckets"]:
    """(ΣW)² / (m ΣW²) over m responses, from the number of their tokens and −log W."""
    log_weight = torch.where(held > 0, -negative, -torch.inf)
    largest = log_weight.nan_to_num(nan=-torch.inf).amax(dim=-1, keepdim=True)
    weight = torch.where(held > 0, (log_weight - largest).exp(), 0.0)  # over the largest: nothing overflows
    count = (held > 0).sum(dim=-1)
    return (weight.sum(dim=-1).square() / (count * weight.square().sum(dim=-1))).clamp(max=1.0)


def _margin(
    held: Float[Tensor, "factors buckets responses"],
    totals: Float[Tensor, "2 factors buckets responses"],
    mean: Float[Tensor, "2 factors buckets"],
) -> Float[Tensor, "2 factors buckets"]:
    """Half the 95% interval of means over tokens. Responses are independent; tokens of one response are not.

    1.96 · sqrt( m/(m−1) · Σ_i (Σ_t (x_t − mean))² ) / n, for m responses with n tokens in total. Not finite for m = 1.
    """
    spread = (totals - mean[..., None] * held).square().sum(dim=-1)
    m = (held > 0).sum(dim=-1)
    return 1.96 * (m / (m - 1) * spread).sqrt() / held.sum(dim=-1)


def routes_differ(mine: Routes, theirs: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether two expert *sets* differ, for each fed position and layer; the order within a set means nothing."""
    return (_ordered(mine) != _ordered(theirs)).any(dim=-1)


def _ordered(routes: Routes) -> Tensor:
    return routes.to(torch.int32).sort(dim=-1).values
