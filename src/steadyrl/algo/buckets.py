"""Sums and quantiles of tokens by bucket, in several ways of sorting at once, with little memory.

Terms of tokens are made a chunk at a time, and added up over *cells*: the tokens of one response that share their
bucket in every split. The buckets, and the responses in each of them, are sums of cells.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from steadyrl.algo.ratio import begins

CHUNK = 2**14
"""Tokens that are added up at a time, unless one response has more."""


class Split(NamedTuple):
    """A way to sort tokens into buckets."""

    name: str
    """What they are sorted by."""
    buckets: tuple[str, ...]
    """Names of the buckets."""
    bucket: Int[Tensor, "tokens"] | UInt8[Tensor, "tokens"]
    """Index of each token's bucket."""


class Cells(NamedTuple):
    """Tokens of one response that share their bucket in every split, added up."""

    response: Int[Tensor, "cells"]
    """The response of a cell, counted from 0."""
    buckets: Int[Tensor, "splits cells"]
    """Its bucket in each split."""
    sizes: tuple[int, ...]
    """How many buckets each split has."""
    sums: Float[Tensor, "terms factors cells"]
    """Σ over its tokens."""

    def by_response(self) -> Iterator[Float[Tensor, "terms factors buckets responses"]]:
        """The sums of each response in each bucket, split by split."""
        responses = int(self.response[-1]) + 1
        for bucket, size in zip(self.buckets, self.sizes, strict=True):
            every = _totals(self.sums, bucket * responses + self.response, size * responses)
            yield every.unflatten(-1, (size, responses))


def add_up(
    terms: Callable[[slice], Float[Tensor, "terms factors chunk"]],
    response: Int[Tensor, "tokens"],
    splits: Sequence[Split],
    *,
    kept: int,
) -> tuple[Float[Tensor, "terms factors buckets"], Cells]:
    """Sums over the tokens of each bucket and of each cell. The buckets of the splits follow one another.

    Args:
        terms: the summands of a slice of tokens.
        response: the response that each token belongs to, in order.
        splits: ways to sort the tokens.
        kept: the cells have sums of this many terms, the first ones.
    """
    sizes = tuple(len(split.buckets) for split in splits)
    totals: list[Tensor] = []
    chunks, responses = [], 0
    for here in _chunks(response):
        cell, owner, buckets = _cells(response[here], [split.bucket[here] for split in splits], sizes)
        sums = _totals(terms(here), cell, len(owner))
        totals = totals or [sums.new_zeros(*sums.shape[:-1], size) for size in sizes]
        for total, bucket in zip(totals, buckets, strict=True):
            total.scatter_add_(-1, bucket.expand_as(sums), sums)
        chunks.append((owner + responses, buckets, sums[:kept].clone()))
        responses += int(owner[-1]) + 1
    owners, buckets, sums = (torch.cat(parts, dim=-1) for parts in zip(*chunks, strict=True))
    return torch.cat(totals, dim=-1), Cells(owners, buckets, sizes, sums)


def _chunks(response: Int[Tensor, "tokens"]) -> Iterator[slice]:
    """Whole responses, as many together as have at most CHUNK tokens, or one."""
    start = 0
    edges = [*begins(response).nonzero().flatten().tolist(), len(response)]
    for end, following in pairwise([*edges[1:], edges[-1] + CHUNK + 1]):
        if following - start > CHUNK:
            yield slice(start, end)
            start = end


def _cells(
    response: Int[Tensor, "tokens"], buckets: Sequence[Tensor], sizes: Sequence[int]
) -> tuple[Int[Tensor, "tokens"], Int[Tensor, "cells"], Int[Tensor, "splits cells"]]:
    """The cell of each token; of each cell its response, counted from 0 and rising, and its buckets."""
    _, joint = response.unique_consecutive(return_inverse=True)
    for bucket, size in zip(buckets, sizes, strict=True):
        joint = joint * size + bucket
    rest, cell = joint.unique(return_inverse=True)
    found: list[Tensor] = []
    for size in reversed(sizes):
        found.append(rest % size)
        rest = rest // size
    return cell, rest, torch.stack(found[::-1])


def _totals(values: Float[Tensor, "*rows n"], key: Int[Tensor, "n"], size: int) -> Float[Tensor, "*rows size"]:
    """Σ over what has the same key."""
    return values.new_zeros(*values.shape[:-1], size).scatter_add_(-1, key.expand_as(values), values)


def ranks(
    values: Float[Tensor, "factors tokens"], splits: Sequence[Split], *, quantiles: Sequence[float]
) -> Float[Tensor, "ranks factors buckets"]:
    """Quantiles to the nearest rank, the lowest and the highest of each bucket; each factor is sorted once.

    A NaN is above all numbers. What an empty bucket holds means nothing.
    """
    wanted = [_places(split, quantiles) for split in splits]
    factors = []
    for row in values:
        ordered, order = row.sort()
        places = (_by_bucket(split, order)[place] for split, place in zip(splits, wanted, strict=True))
        factors.append(torch.cat([ordered[place] for place in places]))
    return torch.stack(factors).permute(2, 0, 1)


def _places(split: Split, quantiles: Sequence[float]) -> Int[Tensor, "buckets ranks"]:
    """Where the ranks of each bucket are, in tokens sorted by bucket and value."""
    count = split.bucket.bincount(minlength=len(split.buckets))
    last = (count - 1).clamp(min=0)
    inner = [(quantile * last.double()).round().long() for quantile in quantiles]
    places = torch.stack([*inner, torch.zeros_like(last), last], dim=1) + (count.cumsum(dim=0) - count)[:, None]
    return places.clamp(max=len(split.bucket) - 1)  # an empty bucket may be behind all others


def _by_bucket(split: Split, order: Int[Tensor, "tokens"]) -> Int[Tensor, "tokens"]:
    """Places in `order`, sorted by the bucket of the token there; within a bucket they rise."""
    return split.bucket[order].sort(stable=True).indices  # a search by bucket would make the host wait for its size
