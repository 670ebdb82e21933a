"""Tokens from logits, by uniform numbers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steadyrl.types import Sampling


def sample(
    logits: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, "rows"], sampling: Sampling
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """A token for each row, and its log-probability under the distribution that it was drawn from.

    Drawn by inverting the cumulative distribution at `uniform`; greedy, a certainty, has log-probability 0.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(dim=-1), torch.zeros_like(uniform)
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k or sampling.top_p < 1.0:
        logprobs = _truncate(logprobs, top_k=sampling.top_k, top_p=sampling.top_p)
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, threshold, right=True).clamp_(max=logits.shape[-1] - 1)
    return ids.squeeze(1), logprobs.gather(1, ids).squeeze(1)


def _truncate(logprobs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k likeliest tokens, then of those the fewest that reach top_p of the mass; renormalise."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    if top_k:
        ordered = torch.log_softmax(ordered.masked_fill(rank >= top_k, -torch.inf), dim=-1)
    before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    ordered = torch.log_softmax(ordered.masked_fill((before >= top_p) & (rank > 0), -torch.inf), dim=-1)
    return torch.empty_like(logprobs).scatter_(1, order, ordered)
