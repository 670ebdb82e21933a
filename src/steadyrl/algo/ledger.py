"""What is measured each step: both factors of eq. 5 (arXiv 2512.01374), before anything is truncated.

The estimators follow Schulman's notation, for x ~ q and ρ = p(x)/q(x): k1 = −log ρ and k3 = ρ − 1 − log ρ both have
the mean D_KL[q‖p]; k3 is never negative and varies less when p is near q. χ² = E_q[(ρ − 1)²].
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from steadyrl.algo.ratio import begins, first_tokens, mismatch, product, staleness
from steadyrl.types import Routes

POSITIONS = (0, 16, 64, 256, 1024, 4096, 16384)
"""Where the buckets of positions within a response begin."""
LAGS = (0, 1, 2, 4, 8)
"""Where the buckets of the policy's age begin, in gradient steps."""
CHUNK = 2**14
"""Tokens that are added up at a time, unless one response has more."""

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


class Split(NamedTuple):
    """A way to sort tokens into buckets."""

    name: str
    """What they are sorted by."""
    buckets: tuple[str, ...]
    """Names of the buckets."""
    bucket: Int[Tensor, "tokens"] | UInt8[Tensor, "tokens"]
    """Index of each token's bucket."""


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
    """Factors in numbers, untruncated, in every bucket of every split; what an empty bucket holds means nothing.

    `tokens`; `k1`, `k3` (each with `_margin`, half its 95% interval) and `chi2`; `mean`, `max` and `ess` of the ratio,
    the last (Σρ)² / (n Σρ²), the share of tokens that a weighted average rests on (Kish); `ess_sequences`, the same of
    W = Π ρ over the tokens of a response in the bucket: the share of responses (VCPO, arXiv 2602.17616); `abs_mean`
    and `abs_max` of its log; `p01`, `p50` and `p99`, quantiles of the ratio; `tail_2` and `tail_5`, the shares of
    ratios outside [1/2, 2] and [1/5, 5].

    Args:
        log_ratio: log of the ratio, per factor and token.
        response: the response that each token belongs to, in order.
        splits: ways to sort the tokens; their buckets stand one after another in the result.
    """
    ranked = _ranked(log_ratio, splits)
    found, cells = _added_up(log_ratio, response, splits)
    count, total, squares = (found.pop(name) for name in ("tokens", "weight", "square"))
    means = {name: value / count for name, value in found.items()}
    margins, effective = cells.between(torch.stack([means["k1"], means["k3"]]))
    ess = (total.square() / (count * squares)).clamp(max=1.0)
    said = {"tokens": count, **means, "k1_margin": margins[0], "k3_margin": margins[1], "ess": ess}
    return said | {"ess_sequences": effective} | ranked


def _added_up(
    log_ratio: Float[Tensor, "factors tokens"], response: Int[Tensor, "tokens"], splits: Sequence[Split]
) -> tuple[dict[str, Float[Tensor, "factors buckets"]], "_Cells"]:
    """Sums over the tokens of each bucket; tokens are added up once, over cells, and the buckets are sums of cells.

    A chunk of tokens is in memory at a time: their terms take 80 bytes for each factor and token.
    """
    finite = (part.double().nan_to_num(nan=-torch.inf) for part in log_ratio.split(CHUNK, dim=1))
    largest = torch.stack([part.amax(dim=1) for part in finite]).amax(dim=0)[:, None]
    chunks, totals = [], {}
    for here in _chunks(response):
        cell, cells = _cells(response[here], [split.bucket[here] for split in splits], splits)
        terms = _terms(log_ratio[:, here], largest)
        sums = _totals(torch.stack(list(terms.values())), cell, len(cells.response))
        for number, (split, bucket) in enumerate(zip(splits, cells.buckets, strict=True)):
            total = totals.setdefault(number, sums.new_zeros(*sums.shape[:-1], len(split.buckets)))
            total.scatter_add_(-1, bucket.expand_as(sums), sums)
        chunks.append(cells._replace(sums=sums[:3].clone()))
    return dict(zip(terms, torch.cat(list(totals.values()), dim=-1), strict=True)), _joined(chunks)


def _terms(
    log_ratio: Float[Tensor, "factors tokens"], largest: Float[Tensor, "factors 1"]
) -> dict[str, Float[Tensor, "factors tokens"]]:
    """What is added up; `_Cells.sums` are the first three."""
    wide, size = log_ratio.double(), log_ratio.abs()
    weight = (wide - largest).exp()  # over the largest, so that nothing overflows
    return {
        "tokens": torch.ones_like(wide),
        "k1": -wide,
        "k3": k3(wide),
        "chi2": wide.expm1().square(),
        "mean": wide.exp(),
        "abs_mean": size.double(),
        "tail_2": (size > torch.tensor(2.0).log()).double(),
        "tail_5": (size > torch.tensor(5.0).log()).double(),
        "weight": weight,
        "square": weight.square(),
    }


def _chunks(response: Int[Tensor, "tokens"]) -> Iterator[slice]:
    """Whole responses, as many together as have at most CHUNK tokens, or one."""
    start = 0
    edges = [*begins(response).nonzero().flatten().tolist(), len(response)]
    for end, following in pairwise(edges[1:] + edges[-1:]):
        if following - start > CHUNK or end == len(response):
            yield slice(start, end)
            start = end


class _Cells(NamedTuple):
    """Tokens of one response that share their bucket in every split, added up."""

    response: Int[Tensor, "cells"]
    """The response of a cell, counted from 0."""
    buckets: Int[Tensor, "splits cells"]
    """Its bucket in each split."""
    sizes: tuple[int, ...]
    """How many buckets each split has."""
    sums: Float[Tensor, "3 factors cells"]
    """The number of its tokens, Σ k1 = −log W, and Σ k3."""

    def by_response(self) -> Iterator[Float[Tensor, "3 factors buckets responses"]]:
        """The sums of each response in each bucket, split by split."""
        responses = int(self.response[-1]) + 1
        for bucket, size in zip(self.buckets, self.sizes, strict=True):
            every = _totals(self.sums, bucket * responses + self.response, size * responses)
            yield every.unflatten(-1, (size, responses))

    def between(
        self, means: Float[Tensor, "2 factors buckets"]
    ) -> tuple[Float[Tensor, "2 factors buckets"], Float[Tensor, "factors buckets"]]:
        """Half the 95% interval of means over tokens, and (ΣW)² / (m ΣW²), over the m responses of a bucket."""
        margins, effective = [], []
        for (held, *totals), mean in zip(self.by_response(), means.split(self.sizes, dim=-1), strict=True):
            margins.append(_margin(held, torch.stack(totals), mean))
            effective.append(_effective(held, totals[0]))
        return torch.cat(margins, dim=-1), torch.cat(effective, dim=-1)


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
    """Half the 95% interval of means over tokens; tokens of one response are not independent, responses are.

    1.96 · sqrt( m/(m−1) · Σ_i (Σ_t (x_t − mean))² ) / n over m responses of n tokens in all; not finite for m = 1.
    """
    spread = (totals - mean[..., None] * held).square().sum(dim=-1)
    m = (held > 0).sum(dim=-1)
    return 1.96 * (m / (m - 1) * spread).sqrt() / held.sum(dim=-1)


def _cells(
    response: Int[Tensor, "tokens"], buckets: Sequence[Int[Tensor, "tokens"]], splits: Sequence[Split]
) -> tuple[Int[Tensor, "tokens"], _Cells]:
    """The cell of each token, and the cells, of which nothing is added up yet; in the order of the responses."""
    sizes = tuple(len(split.buckets) for split in splits)
    _, joint = response.unique_consecutive(return_inverse=True)
    for bucket, size in zip(buckets, sizes, strict=True):
        joint = joint * size + bucket
    rest, cell = joint.unique(return_inverse=True)
    found: list[Tensor] = []
    for size in reversed(sizes):
        found.append(rest % size)
        rest = rest // size
    return cell, _Cells(rest, torch.stack(found[::-1]), sizes, rest.new_zeros(3, 0, len(rest), dtype=torch.float64))


def _joined(chunks: Sequence[_Cells]) -> _Cells:
    """The cells of all chunks, their responses counted on."""
    starts = accumulate((int(chunk.response[-1]) + 1 for chunk in chunks), initial=0)
    return _Cells(
        response=torch.cat([chunk.response + start for chunk, start in zip(chunks, starts, strict=False)]),
        buckets=torch.cat([chunk.buckets for chunk in chunks], dim=1),
        sizes=chunks[0].sizes,
        sums=torch.cat([chunk.sums for chunk in chunks], dim=-1),
    )


def _totals(values: Float[Tensor, "*rows n"], key: Int[Tensor, "n"], size: int) -> Float[Tensor, "*rows size"]:
    """Σ over what has the same key."""
    return values.new_zeros(*values.shape[:-1], size).scatter_add_(-1, key.expand_as(values), values)


def _ranked(
    log_ratio: Float[Tensor, "factors tokens"], splits: Sequence[Split]
) -> dict[str, Float[Tensor, "factors buckets"]]:
    """Quantiles of the ratio, to the nearest rank, and the largest; each factor is sorted once for all buckets."""
    ranks = [_ranks(split) for split in splits]
    factors = []
    for row in log_ratio:
        ordered, order = row.sort()
        places = (_by_bucket(split, order)[rank] for split, rank in zip(splits, ranks, strict=True))
        factors.append(torch.cat([ordered[place] for place in places]))
    p01, p50, p99, lowest, highest = torch.stack(factors).double().unbind(dim=-1)
    ratios = {"p01": p01.exp(), "p50": p50.exp(), "p99": p99.exp(), "max": highest.exp()}
    return ratios | {"abs_max": torch.maximum(-lowest, highest)}  # a NaN is sorted last, and stays


def _ranks(split: Split) -> Int[Tensor, "buckets 5"]:
    """Where the three quantiles and the two extremes of each bucket are, in tokens sorted by bucket and ratio."""
    count = split.bucket.bincount(minlength=len(split.buckets))
    last = (count - 1).clamp(min=0)
    quantiles = [(q * last.double()).round().long() for q in (0.01, 0.5, 0.99)]
    ranks = torch.stack([*quantiles, torch.zeros_like(last), last], dim=1) + (count.cumsum(dim=0) - count)[:, None]
    return ranks.clamp(max=len(split.bucket) - 1)  # an empty bucket may be behind all others


def _by_bucket(split: Split, order: Int[Tensor, "tokens"]) -> Int[Tensor, "tokens"]:
    """Places in `order`, sorted by the bucket of the token there."""
    numbers = torch.arange(len(split.buckets), dtype=split.bucket.dtype, device=order.device)
    return (split.bucket[order] == numbers[:, None]).nonzero()[:, 1]


def routes_differ(mine: Routes, theirs: Routes) -> Bool[Tensor, "positions layers"]:
    """Whether two expert *sets* differ, for each fed position and layer; the order within a set means nothing."""
    return (_ordered(mine) != _ordered(theirs)).any(dim=-1)


def _ordered(routes: Routes) -> Tensor:
    return routes.to(torch.int32).sort(dim=-1).values
